"""Averages of the student's weights along the training."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, PyTree


class Average(NamedTuple):
  """How averaged weights are kept.

  Attributes:
    update: (average, params, step) -> average, after step number `step`.
    started: (average, live, step) -> the average once it has begun, else what
      is live.
    own_stats: whether the averaged weights have running averages of their own;
      else they take the live student's.
  """

  update: Callable[[PyTree, PyTree, Array], PyTree]
  started: Callable[[PyTree, PyTree, Array], PyTree]
  own_stats: bool


def ema(decay: float) -> Average:
  """Exponential: decay min(decay, (1 + n) / (10 + n)) after n steps.

  The running averages are the live student's, as in Gowal et al. 2020,
  arXiv 2010.03593.
  """

  def update(average, params, step):
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)

  return Average(update, lambda average, live, step: average, own_stats=False)


def swa(start: int, every: int) -> Average:
  """Stochastic: the mean of the weights at `start` and then each `every` steps.

  Izmailov et al., UAI 2018, arXiv 1803.05407. Until `start` it is the live
  weights. Averaged weights need running averages of their own (section 3.2).
  Weights are taken after the first step of an epoch, where official codes take
  them after the last, so that those averages have an epoch to follow.

  Args:
    start: step of the first weights of the mean.
    every: steps between them; papers take an epoch.
  """

  def update(average, params, step):
    number = (step - start) // every  # weights that the mean holds already
    due = (step >= start) & ((step - start) % every == 0)
    share = jnp.where(due, 1.0 / (jnp.maximum(number, 0) + 1.0), 0.0)
    share = jnp.where(step < start, 1.0, share)
    return jax.tree.map(
      lambda a, p: (1 - share) * a + share * p, average, params
    )

  def started(average, live, step):
    pick = lambda a, p: jnp.where(step < start, p, a)  # noqa: E731
    return jax.tree.map(pick, average, live)

  return Average(update, started, own_stats=True)
