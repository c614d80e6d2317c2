"""What Auto-PGD remembers of each image, and what it decides at checkpoints.

Nothing here evaluates the network. A state has one row per image, so that rows
can be left out or reordered between any two steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.attacks import l1
from jax_robust_kd.attacks.apgd_schedule import Row
from jax_robust_kd.attacks.stepwise import Problem
from jax_robust_kd.core import Array

_RHO = 0.75  # share of the steps that must raise the loss


class Evaluation(NamedTuple):
  """What the network says of some points."""

  loss: Array  # [B]
  gradient: Array  # [B, H, W, C]
  wrong: Array  # [B] bool


class State(NamedTuple):
  """Where the attack is; `best` is the point of the largest loss.

  Attributes:
    adv: [B, H, W, C] the latest misclassified point in the ball; until there is
      one, the start; while the ball is still wider (l_1), the image.
    fooled: [B] bool, whether `adv` is misclassified.
    target: [B] int32, the class to reach.
    point: [B, H, W, C] where the next step starts.
    gradient: [B, H, W, C] of the loss there.
    previous: [B, H, W, C] where the last step started.
    best: [B, H, W, C].
    best_gradient: [B, H, W, C].
    best_loss: [B].
    step_size: [B] in units of the norm.
    last_loss: [B] where the last step ended.
    rises: [B] int32, steps since the last checkpoint that raised the loss.
    checked_loss: [B] `best_loss` at the last checkpoint.
    halved: [B] bool, whether the step was halved there.
    changed: [B] number of pixels that `best` changed there.
  """

  adv: Array
  fooled: Array
  target: Array
  point: Array
  gradient: Array
  previous: Array
  best: Array
  best_gradient: Array
  best_loss: Array
  step_size: Array
  last_loss: Array
  rises: Array
  checked_loss: Array
  halved: Array
  changed: Array


def begin(
  problem: Problem,
  row: Row,
  point: Array,
  evaluation: Evaluation,
  target: Array,
) -> State:
  """Returns the state at the start of a phase."""
  size = point.shape[:1]
  share = 1.0 if problem.budget.norm == 'l1' else 2.0
  longest = share * problem.budget.epsilon * row.widening
  return State(
    adv=point,
    fooled=evaluation.wrong,
    target=target,
    point=point,
    gradient=evaluation.gradient,
    previous=point,
    best=point,
    best_gradient=evaluation.gradient,
    best_loss=evaluation.loss,
    step_size=jnp.broadcast_to(longest, size),
    # The reference program compares the first step's loss with 0, and never
    # halves for want of a gain at the first checkpoint.
    last_loss=jnp.zeros(size),
    rises=jnp.zeros(size, jnp.int32),
    checked_loss=evaluation.loss,
    halved=jnp.ones(size, bool),
    changed=l1.support(point - problem.image),
  )


def record(state: State, point: Array, evaluation: Evaluation) -> State:
  """Keeps what a step has brought."""
  best, best_gradient, best_loss = _where(
    evaluation.loss > state.best_loss,
    (point, evaluation.gradient, evaluation.loss),
    (state.best, state.best_gradient, state.best_loss),
  )
  return state._replace(
    adv=_where(evaluation.wrong, point, state.adv),
    fooled=state.fooled | evaluation.wrong,
    point=point,
    gradient=evaluation.gradient,
    previous=state.point,
    best=best,
    best_gradient=best_gradient,
    best_loss=best_loss,
    last_loss=evaluation.loss,
    rises=state.rises + (evaluation.loss > state.last_loss),
  )


def check_progress(row: Row, state: State) -> State:
  """At a checkpoint: halves the step of images that do not get on.

  Either at most 3 in 4 steps raised the loss, or the best loss is still that of
  the last checkpoint and the step was not halved there (Croce & Hein 2020,
  conditions 1 and 2).
  """
  here = row.window > 0
  wavers = state.rises <= _RHO * row.window
  rests = ~state.halved & (state.checked_loss >= state.best_loss)
  halve = here & (wavers | rests)
  return _go_back(halve, state)._replace(
    step_size=jnp.where(halve, state.step_size / 2, state.step_size),
    rises=jnp.where(here, 0, state.rises),
    checked_loss=jnp.where(here, state.best_loss, state.checked_loss),
    halved=jnp.where(here, halve, state.halved),
  )


def check_sparsity(problem: Problem, row: Row, state: State) -> State:
  """At a checkpoint in l_1: follows the number of pixels that `best` changes.

  Images whose number fell by more than 5 % go back to `best` and take the
  longest step again; for all others it shrinks, down to a tenth.
  """
  here = row.window > 0
  longest = problem.budget.epsilon * row.widening
  changed = l1.support(state.best - problem.image)
  sparser = changed / state.changed < 0.95
  size = jnp.where(sparser, longest, state.step_size / 1.5)
  size = jnp.clip(size, longest / 10.0, longest)
  return _go_back(here & sparser, state)._replace(
    step_size=jnp.where(here, size, state.step_size),
    changed=jnp.where(here, changed, state.changed),
  )


def _go_back(mask: Array, state: State) -> State:
  """Moves the images of `mask` to their best point."""
  point, gradient = _where(
    mask, (state.best, state.best_gradient), (state.point, state.gradient)
  )
  return state._replace(point=point, gradient=gradient)


def _where(mask: Array, yes: Any, no: Any) -> Any:
  """Chooses by image, [B], between the arrays of two pytrees."""

  def choose(a, b):
    return jnp.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

  return jax.tree.map(choose, yes, no)
