"""Per-example losses: [B, K] logits in, [B] nats out, summed over classes.

Averaging over classes, as `KLDivLoss` does by default in much of the field's
code, is never done: a paper's scale is a visible number in its config.
"""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array


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
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


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
