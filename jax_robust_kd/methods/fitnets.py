"""FitNets: Hints for Thin Deep Nets.

Romero et al., ICLR 2015, arXiv 1412.6550. As in the code of CRD, whose weights
are the defaults, all terms are trained together (the paper trains the hint
first), and the regressor is a convolution, BatchNorm and relu, though the maps
of pre-activation networks have negative values, out of its reach. There the
kernel depends on the sizes of the maps; here it is 1x1, and the larger of two
maps is averaged down first.
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
  """Builds FitNets: gamma CE + alpha t^2 KL + beta mean (r(f_S) - f_T)^2.

  f is one stage's map, r a trained regressor (Eq. 3 of the paper).

  Args:
    hint: the stage, the same of both networks.
    beta: weight of the hint.
    gamma: weight of the labels.
    alpha: weight of the teacher's logits.
    temperature: t, softens both networks' logits.
    on: what both networks see, 'clean' as in the paper, or 'adv': images that
      maximize CE(S(x'), y).
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
