"""Hints from a stage of the teacher (FitNets).

As in the code of CRD, whose weights are the defaults, all terms are trained
together (the paper trains the hint first), and the regressor is a convolution,
BatchNorm and relu, though the maps of pre-activation networks have negative
values, out of its reach. There the kernel depends on the sizes of the maps;
here it is 1x1, and the larger of two maps is averaged down first.
"""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Method
from jax_robust_kd.methods.features import ON, distill, init_linear, same_size
from jax_robust_kd.methods.options import choose


def fitnets(
  hint: str = 'stage2',
  beta: float = 100.0,
  gamma: float = 1.0,
  alpha: float = 0.0,
  temperature: float = 4.0,
  on: str = 'clean',
) -> Method:
  """Builds FitNets, which regresses one stage of the teacher.

  The loss is `gamma CE + alpha t^2 KL_t + beta mean (r(f_S) - f_T)^2`, with f
  one stage's map and r a trained regressor.

  Args:
    hint: the stage, the same of both networks.
    beta: weight of the hint, >= 0.
    gamma: weight of the labels, >= 0.
    alpha: weight of the teacher's logits, >= 0.
    temperature: t, > 0; softens both networks' logits.
    on: what both networks see, 'clean' as in the paper, or 'adv': images that
      maximize CE(S(x'), y).

  Returns:
    The method, with one robust teacher and extra weights.

  Raises:
    UserError: an unknown `on`, or, when the weights are drawn, `hint`.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.fitnets(hint='stage1').teachers
    ('robust',)

  References:
    Romero et al., ICLR 2015, arXiv 1412.6550. Loss: confirmed by the official
    code of CRD.
  """

  def init_heads(rng, student, teacher):
    common = student.features.keys() & teacher.features.keys()
    choose('hint', hint, dict.fromkeys(sorted(common - {'pooled'})))
    inputs, outputs = (
      out.features[hint].shape[-1] for out in (student, teacher)
    )
    head = init_linear(rng, inputs, outputs)
    return {
      'kernel': head['kernel'],
      'scale': jnp.ones(outputs),
      'bias': jnp.zeros(outputs),
    }

  def loss(ctx, batch, adv):
    student, teacher = ctx.student(adv), ctx.teacher(adv)
    maps = same_size(student.features[hint], teacher.features[hint])
    term = jnp.mean((regress(ctx.heads, maps[0]) - maps[1]) ** 2)
    return distill(
      batch, student, teacher, term, gamma=gamma, alpha=alpha, beta=beta,
      temperature=temperature,
    )  # fmt: skip

  return Method(loss, choose('on', on, ON), init_heads)


def regress(head: dict[str, Array], x: Array) -> Array:
  """relu(BatchNorm(1x1 convolution)), [B, h, w, c] to the teacher's c.

  BatchNorm uses the batch of this device. It is never evaluated, so it keeps
  no running averages.
  """
  x = x @ head['kernel']
  x = x - x.mean(axis=(0, 1, 2))
  x = x * jax.lax.rsqrt((x**2).mean(axis=(0, 1, 2)) + 1e-5)
  return jax.nn.relu(x * head['scale'] + head['bias'])
