"""Robust representation matching (RRM)."""

import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy
from jax_robust_kd.methods.features import init_linear, linear, unit


def rrm(beta: float = 0.005) -> Method:
  """Builds RRM: beta CE(S(x), y) - cos(f_S(x), f_T(x)).

  f are the pooled features. No attack: robustness comes from the teacher's
  features alone. In the authors' code a student whose features have another
  width than the teacher's gets a linear layer to that width before its
  classifier, and keeps it; here that layer stands beside the classifier, which
  reads the features themselves, and is dropped after training.

  Args:
    beta: weight of the labels, >= 0.

  Returns:
    The method, with one robust teacher, and extra weights where widths differ.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.rrm(beta=0.005).perturb.__name__
    'no_attack'

  References:
    Vaishnavi, Eykholt and Rahmati, Transferring Robustness Through Robust
    Representation Matching, USENIX Security 2022, arXiv 2202.09994. Loss:
    confirmed by the official code.
  """

  def init_heads(rng, student, teacher):
    widths = [o.features['pooled'].shape[-1] for o in (student, teacher)]
    return {} if widths[0] == widths[1] else init_linear(rng, *widths)

  def loss(ctx, batch, adv):
    del adv
    out = ctx.student(batch.image)
    pooled = out.features['pooled']
    pooled = linear(ctx.heads, pooled) if ctx.heads else pooled
    target = ctx.teacher(batch.image).features['pooled']
    cosine = jnp.mean(jnp.sum(unit(pooled) * unit(target), axis=-1))
    hard = jnp.mean(cross_entropy(out.logits, batch.target))
    metrics = {'ce': hard, 'cosine': cosine}
    return LossOutput(beta * hard - cosine, out.batch_stats, metrics)

  return Method(loss, init_heads=init_heads)
