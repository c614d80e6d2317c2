"""Attention transfer (AT)."""

import jax.numpy as jnp

from jax_robust_kd.core import Array, Method, Output
from jax_robust_kd.methods.features import ON, distill, same_size, unit
from jax_robust_kd.methods.options import choose


def at(
  beta: float = 1000.0,
  gamma: float = 1.0,
  alpha: float = 0.0,
  temperature: float = 4.0,
  on: str = 'clean',
) -> Method:
  """Builds AT, which matches maps of attention stage by stage.

  The loss is `gamma CE + alpha t^2 KL_t + beta sum_l mean (Q_S - Q_T)^2`. Q is
  the mean over channels of the squared features of stage l, as a vector of
  length 1 per image. The paper has the length of the difference, weighted by
  beta / 2; the authors' code and that of CRD, whose weights are the defaults,
  have the mean of its squares. Compared are the stages that both networks have,
  by name, without the stem; the larger map of two is averaged down.

  Args:
    beta: weight of the attention, >= 0.
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
    >>> methods.at(on='adv').perturb.__name__
    'cross_entropy_label'

  References:
    Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017,
    arXiv 1612.03928. Loss: confirmed by the official code of CRD.
  """

  def loss(ctx, batch, adv):
    student, teacher = ctx.student(adv), ctx.teacher(adv)
    term = attention_loss(student, teacher)
    return distill(
      batch, student, teacher, term, gamma=gamma, alpha=alpha, beta=beta,
      temperature=temperature,
    )  # fmt: skip

  return Method(loss, choose('on', on, ON))


def attention_loss(student: Output, teacher: Output) -> Array:
  """Returns the sum over common stages of mean (Q_S - Q_T)^2, a scalar."""
  common = student.features.keys() & teacher.features.keys()
  total = jnp.zeros(())
  for name in sorted(common - {'stem', 'pooled'}):
    a, b = same_size(student.features[name], teacher.features[name])
    total += jnp.mean((_attention(a) - _attention(b)) ** 2)
  return total


def _attention(x: Array) -> Array:
  return unit(jnp.mean(x**2, axis=-1).reshape(len(x), -1))
