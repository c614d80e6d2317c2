"""What the methods that match features share."""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import (
  Array,
  Batch,
  LossOutput,
  Output,
  Perturb,
  UserError,
  no_attack,
)
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.inner_problems import cross_entropy_label

# Inner problems by the images that both networks see. The outer loss takes
# what `perturb` returned, which for 'clean' are the images themselves.
ON: dict[str, Perturb] = {'clean': no_attack, 'adv': cross_entropy_label}


def unit(x: Array) -> Array:
  """x / ||x|| over the last axis; 0, with gradient 0, where x is 0."""
  square = jnp.sum(x**2, axis=-1, keepdims=True)
  positive = square > 0
  scale = jax.lax.rsqrt(jnp.where(positive, square, 1.0))
  return x * jnp.where(positive, scale, 0.0)


def init_linear(rng: Array, inputs: int, outputs: int) -> dict[str, Array]:
  """Draws a linear layer as PyTorch does: uniform in +-1 / sqrt(inputs)."""
  side = inputs**-0.5
  shapes = {'kernel': (inputs, outputs), 'bias': (outputs,)}
  return {
    name: jax.random.uniform(key, shape, minval=-side, maxval=side)
    for key, (name, shape) in zip(
      jax.random.split(rng), shapes.items(), strict=True
    )
  }


def linear(head: dict[str, Array], x: Array) -> Array:
  """x W + b over the last axis."""
  return x @ head['kernel'] + head['bias']


def init_projections(
  rng: Array, student: Output, teacher: Output, size: int
) -> dict[str, dict[str, Array]]:
  """Draws a linear layer to `size` numbers for each network's features."""
  outputs = {'student': student, 'teacher': teacher}
  keys = jax.random.split(rng)
  return {
    name: init_linear(key, out.features['pooled'].shape[-1], size)
    for key, (name, out) in zip(keys, outputs.items(), strict=True)
  }


def project(head: dict[str, Array], out: Output) -> Array:
  """Returns a network's projected features, [B, size], of length 1."""
  return unit(linear(head, out.features['pooled']))


def same_size(a: Array, b: Array) -> tuple[Array, Array]:
  """Averages the larger of two maps [B, h, w, c] down to the other's pixels.

  Both in float32 even when the networks compute in bfloat16.

  Raises:
    UserError: one side is not a multiple of the other.
  """
  small = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
  return _pool(a, small), _pool(b, small)


def _pool(x: Array, size: tuple[int, int]) -> Array:
  n, h, w, c = x.shape
  if h % size[0] or w % size[1]:
    raise UserError(
      f'feature maps of {h}x{w} and {size[0]}x{size[1]} pixels cannot be '
      'matched; use a student and a teacher whose maps divide'
    )
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  blocks = x.reshape(n, size[0], h // size[0], size[1], w // size[1], c)
  return blocks.mean(axis=(2, 4))


def distill(
  batch: Batch,
  student: Output,
  teacher: Output,
  term: Array,
  *,
  gamma: float,
  alpha: float,
  beta: float,
  temperature: float,
) -> LossOutput:
  """gamma CE(S, y) + alpha t^2 KL(T_t || S_t) + beta term.

  The sum of the authors of CRD, who run all feature distillation so.

  Args:
    batch: the labels.
    student: its output on the images.
    teacher: likewise.
    term: scalar, what is made of the features.
    gamma: weight of the labels.
    alpha: weight of the teacher's logits.
    beta: weight of `term`.
    temperature: t.
  """
  hard = jnp.mean(cross_entropy(student.logits, batch.target))
  soft = temperature**2 * jnp.mean(
    kl_divergence(student.logits, teacher.logits, temperature)
  )
  value = gamma * hard + alpha * soft + beta * term
  metrics = {'ce': hard, 'kl': soft, 'feature': term}
  return LossOutput(value, student.batch_stats, metrics)
