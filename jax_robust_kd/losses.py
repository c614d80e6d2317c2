"""Per-example losses: [B, K] logits in, [B] nats out, summed over classes.

Averaging over classes, as `KLDivLoss` does by default in much of the field's
code, is never done: a paper's scale is a visible number in its config.
"""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array

__all__ = ['cross_entropy', 'dlr', 'dlr_targeted', 'kl_divergence', 'margin']

_TINY = 1e-12  # keeps a ratio finite when logits are equal


def cross_entropy(logits: Array, target: Array) -> Array:
  """Computes the cross-entropy against class probabilities.

  Args:
    logits: [B, K].
    target: [B, K] probabilities in [0, 1] (one-hot, mixed or softened).

  Returns:
    [B] nats, >= 0: -sum_c target_c log softmax(logits)_c.

  Examples:
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import losses
    >>> losses.cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))
    Array([0.6931472], dtype=float32)
  """
  return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


def kl_divergence(
  logits: Array, target_logits: Array, temperature: float = 1.0
) -> Array:
  """Computes KL(softmax(target_logits / t) || softmax(logits / t)).

  Gradients flow into both arguments; a method that wants a fixed target stops
  them itself. The factor t^2 that keeps the gradient's scale is left to the
  method.

  Args:
    logits: [B, K], usually the student's.
    target_logits: [B, K], usually the teacher's.
    temperature: t, > 0; softens both sides.

  Returns:
    [B] nats, >= 0.

  Examples:
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import losses
    >>> losses.kl_divergence(jnp.zeros((1, 2)), jnp.array([[0.0, 100.0]]))
    Array([0.6931472], dtype=float32)

  References:
    Hinton et al. 2015, arXiv 1503.02531.
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
  """Computes the largest wrong logit minus the label's.

  Args:
    logits: [B, K].
    label: [B] int32, in 0 to K - 1.

  Returns:
    [B], in the units of logits; > 0 exactly when the example is misclassified
    (ties count as right).

  Examples:
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import losses
    >>> losses.margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]))
    Array([-1.], dtype=float32)

  References:
    Carlini and Wagner 2017, arXiv 1608.04644.
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
  """Computes the difference of logits ratio (DLR).

  The margin is divided by the distance from the largest to the third largest
  logit, so that the loss does not change when all logits are shifted or scaled.
  With two classes there is no third logit, and the margin is returned.

  Args:
    logits: [B, K].
    label: [B] int32, in 0 to K - 1.

  Returns:
    [B]; > 0 exactly when the example is misclassified. From 3 classes on it is
    >= -1, and 1 with gradient zero where the label has the third logit.

  Examples:
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import losses
    >>> losses.dlr(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]))
    Array([-0.5], dtype=float32)

  References:
    Croce and Hein, ICML 2020, arXiv 2003.01690.
  """
  if logits.shape[-1] < 3:
    return margin(logits, label)
  top = jax.lax.top_k(logits, 3)[0]
  return _ratio(margin(logits, label), top[:, 0] - top[:, 2] + _TINY)


def dlr_targeted(logits: Array, label: Array, target: Array) -> Array:
  """Computes the targeted difference of logits ratio (DLR-T).

  With fewer than four classes its denominator does not exist, and the
  difference of the two logits is returned.

  Args:
    logits: [B, K].
    label: [B] int32, in 0 to K - 1.
    target: [B] int32, in 0 to K - 1, the class to reach.

  Returns:
    [B]; > 0 exactly when the target's logit exceeds the label's.

  Examples:
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import losses
    >>> logits = jnp.array([[4.0, 2.0, 1.0, 1.0]])
    >>> losses.dlr_targeted(logits, jnp.array([0]), jnp.array([1]))
    Array([-0.6666667], dtype=float32)

  References:
    Croce and Hein, ICML 2020, arXiv 2003.01690.
  """
  classes = jnp.stack([target, label], axis=1)
  pair = jnp.take_along_axis(logits, classes, axis=1)
  difference = pair[:, 0] - pair[:, 1]
  if logits.shape[-1] < 4:
    return difference
  top = jax.lax.top_k(logits, 4)[0]
  scale = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY
  return _ratio(difference, scale)
