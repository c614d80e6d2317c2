"""Relational knowledge distillation (RKD)."""

import jax.numpy as jnp

from jax_robust_kd.core import Array, Method, gather
from jax_robust_kd.methods.features import ON, distill, unit
from jax_robust_kd.methods.options import choose


def rkd(
  distance: float = 25.0,
  angle: float = 50.0,
  beta: float = 1.0,
  gamma: float = 1.0,
  alpha: float = 0.0,
  temperature: float = 4.0,
  on: str = 'clean',
) -> Method:
  """Builds RKD, which matches distances and angles between images.

  The loss is `gamma CE + alpha t^2 KL_t + beta (distance D + angle A)`. D is
  Huber's loss between the two networks' distances of all pairs of images, each
  divided by its mean over the pairs that differ; A the same between the cosines
  at each image of the directions to all pairs of others. Of pooled features.
  Pairs and triples of one image with itself count in the means, as in the code
  of CRD, whose weights are the defaults. The batch is that of all devices
  together.

  Args:
    distance: weight of D, >= 0.
    angle: weight of A, >= 0.
    beta: weight of both, >= 0.
    gamma: weight of the labels, >= 0.
    alpha: weight of the teacher's logits, >= 0.
    temperature: t, > 0; softens both networks' logits.
    on: what both networks see, 'clean' as in the paper, or 'adv': images that
      maximize CE(S(x'), y).

  Returns:
    The method, with one robust teacher.

  Raises:
    UserError: an unknown `on`.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.rkd(distance=25.0, angle=50.0).teachers
    ('robust',)

  References:
    Park et al., CVPR 2019, arXiv 1904.05068. Loss: confirmed by the official
    code of CRD.
  """

  def loss(ctx, batch, adv):
    student, teacher = ctx.student(adv), ctx.teacher(adv)
    pooled = student.features['pooled'], teacher.features['pooled']
    (d_s, a_s), (d_t, a_t) = map(relations, pooled)
    term = distance * huber(d_s - d_t) + angle * huber(a_s - a_t)
    return distill(
      batch, student, teacher, term, gamma=gamma, alpha=alpha, beta=beta,
      temperature=temperature,
    )  # fmt: skip

  return Method(loss, choose('on', on, ON))


def relations(x: Array) -> tuple[Array, Array]:
  """Relates the images of this device to those of all n.

  Args:
    x: [B, d] features.

  Returns:
    [B, n] distances divided by their mean, and [B, n, n] cosines of the angles
    at each image.
  """
  apart = gather(x) - x[:, None]
  direction = unit(apart)
  length = jnp.sum(apart * direction, axis=-1)
  lengths = gather(length)
  mean = jnp.sum(lengths) / jnp.maximum(jnp.sum(lengths > 0), 1)
  cosine = jnp.einsum('ijd,ikd->ijk', direction, direction)
  return length / jnp.where(mean > 0, mean, 1.0), cosine


def huber(x: Array) -> Array:
  """Mean of x^2 / 2 where |x| < 1 and |x| - 1/2 elsewhere, a scalar."""
  size = jnp.abs(x)
  return jnp.mean(jnp.where(size < 1, 0.5 * x**2, size - 0.5))
