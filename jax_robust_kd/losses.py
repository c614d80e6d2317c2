"""Per-example losses: [B, K] logits in, [B] nats out, summed over classes.

Averaging over classes, as `KLDivLoss` does by default in much of the field's
code, is never done: a paper's scale is a visible number in its config.
"""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array

_TINY = 1e-12  # keeps a ratio finite when logits are equal


def cross_entropy(logits: Array, target: Array) -> Array:
  """Cross-entropy of `logits` against class probabilities.

  Args:
    logits: [B, K].
    target: [B, K] probabilities (one-hot, mixed or softened).

  Returns:
    [B] nats: -sum_c target_c log softmax(logits)_c.
  """
  return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def kl_divergence(
  logits: Array, target_logits: Array, temperature: float = 1.0
) -> Array:
  """KL(softmax(target_logits / t) || softmax(logits / t)).

  Gradients flow into both arguments; a method that wants a frozen target stops
  them itself. The factor t^2 that keeps the gradient's scale (Hinton et al.
  2015) is left to the method.

  Args:
    logits: [B, K], usually the student's.
    target_logits: [B, K], usually the teacher's.
    temperature: softens both sides.

  Returns:
    [B] nats, >= 0.
  """
  log_q = jax.nn.log_softmax(logits / temperature)
  log_p = jax.nn.log_softmax(target_logits / temperature)
  p, d = jnp.exp(log_p), log_p - log_q
  # The classes of p d cancel one another where p and q are close, as at high
  # temperatures. With q - p, whose sum is 0, each is positive by itself.
  near = jnp.abs(d) < 1
  close = p * (d + jnp.expm1(-jnp.where(near, d, 0.0)))
  return jnp.sum(jnp.where(near, close, p * d + jnp.exp(log_q) - p), axis=-1)


def margin(logits: Array, label: Array) -> Array:
  """Largest wrong logit minus the right one (Carlini & Wagner 2017).

  Args:
    logits: [B, K].
    label: [B] int32.

  Returns:
    [B]; > 0 exactly when the example is misclassified (ties count as right).
  """
  right = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
  wrong = jnp.max(jnp.where(right, -jnp.inf, logits), axis=-1)
  return wrong - jnp.sum(jnp.where(right, logits, 0.0), axis=-1)


@jax.custom_jvp
def _ratio(a: Array, b: Array) -> Array:
  """a / b, whose two partial derivatives cancel exactly where a equals b.

  There `dlr` is 1 whatever the image is. Autodiff's own rule would leave
  rounding errors, and an attack that takes their signs would walk at random.
  """
  return a / b


@_ratio.defjvp
def _ratio_jvp(primals, tangents):
  (a, b), (da, db) = primals, tangents
  value = a / b
  return value, (da - value * db) / b


def dlr(logits: Array, label: Array) -> Array:
  """Difference of logits ratio (Croce & Hein 2020).

  The margin over the distance from the first to the third logit, so that it
  does not change when all logits are shifted or scaled. With two classes there
  is no third logit, and the margin itself is returned.

  Args:
    logits: [B, K].
    label: [B] int32.

  Returns:
    [B]; > 0 exactly when the example is misclassified. From 3 classes on it is
    >= -1, and 1 with gradient zero where the label has the third logit.
  """
  if logits.shape[-1] < 3:
    return margin(logits, label)
  top = jax.lax.top_k(logits, 3)[0]
  return _ratio(margin(logits, label), top[:, 0] - top[:, 2] + _TINY)


def dlr_targeted(logits: Array, label: Array, target: Array) -> Array:
  """Targeted difference of logits ratio (Croce & Hein 2020).

  With less than four classes its denominator does not exist, and the
  difference of the two logits itself is returned.

  Args:
    logits: [B, K].
    label: [B] int32.
    target: [B] int32, the class to reach.

  Returns:
    [B]; > 0 exactly when the target's logit exceeds the label's.
  """
  classes = jnp.stack([target, label], axis=1)
  pair = jnp.take_along_axis(logits, classes, axis=1)
  difference = pair[:, 0] - pair[:, 1]
  if logits.shape[-1] < 4:
    return difference
  top = jax.lax.top_k(logits, 4)[0]
  scale = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY
  return _ratio(difference, scale)
