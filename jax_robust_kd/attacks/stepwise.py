"""Attacks that can be stopped between any two steps.

A long attack runs in chunks of steps: misclassified images are dropped between
chunks, and the others are packed into fewer batches (`packing`). Such an attack
is a start and a step over a state with one row per image; `as_plain_attack`
joins them into one function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.attacks.gradient import Budget, check_arguments
from jax_robust_kd.core import Array, LogitsFn, fold_in


class Problem(NamedTuple):
  """The arguments of an attack, one row per image.

  Attributes:
    rng: [B] keys of this run, one per image.
    logits_fn: [B, H, W, C] -> [B, K]; with `budget.num_eot` above 1 it takes
      keys [B] as second argument.
    image: [B, H, W, C] float32 in [0, 1].
    label: [B] int32.
    budget: the threat model.
    run: scalar int32, number of this restart or target.
  """

  rng: Array
  logits_fn: LogitsFn
  image: Array
  label: Array
  budget: Budget
  run: Array


NumRuns = Callable[[Budget, int], int]  # (budget, num_classes) -> runs


class Stepwise(NamedTuple):
  """An attack in steps.

  Its state is a NamedTuple of arrays, all [B, ...], among them `adv` [B, H, W,
  C], the point to report, inside the ball and [0, 1], and `fooled` [B] bool,
  whether it is misclassified.

  Attributes:
    init: Problem -> state.
    step: (Problem, index, state) -> state, with index a scalar int32.
    num_runs: (budget, num_classes) -> restarts times targets; each run starts
      from the image.
    num_steps: budget -> steps of a run.
    chunk: steps after which misclassified images are dropped first.
  """

  init: Callable[[Problem], Any]
  step: Callable[[Problem, Array, Any], Any]
  num_runs: NumRuns
  num_steps: Callable[[Budget], int]
  chunk: int


# (rng, logits_fn, image, label, budget) -> adv, and the same in steps.
PlainAttack = Callable[[Array, LogitsFn, Array, Array, Budget], Array]
Attack = PlainAttack | Stepwise


def advance(
  attack: Stepwise,
  problem: Problem,
  state: Any,
  first: Array | int,
  last: Array | int,
) -> Any:
  """Takes the steps `first` to `last` - 1."""
  return jax.lax.fori_loop(
    first, last, lambda i, s: attack.step(problem, i, s), state
  )


def as_plain_attack(attack: Attack) -> PlainAttack:
  """Returns an attack as one function, which runs all its runs in turn.

  Args:
    attack: in steps, or a function, which is returned as it is.

  Returns:
    (rng, logits_fn, image, label, budget) -> adv [B, H, W, C]: the first point
    that is misclassified, or that of the last run.

  Examples:
    >>> square = as_plain_attack(ATTACKS['square'])
    >>> square(rng, logits_fn, image, label, budget).shape
    (4, 8, 8, 3)
  """
  if not isinstance(attack, Stepwise):
    return attack

  def run_all(
    rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
  ) -> Array:
    check_arguments(image, budget, ('linf', 'l2', 'l1'))
    draws = (rng,) if budget.num_eot > 1 else ()
    num_classes = jax.eval_shape(logits_fn, image, *draws).shape[-1]

    def run(best, number):
      adv, fooled = best
      problem = Problem(
        fold_in(rng, number), logits_fn, image, label, budget, number
      )
      state = attack.init(problem)
      state = advance(attack, problem, state, 0, attack.num_steps(budget))
      keep = fooled[:, None, None, None]
      return (jnp.where(keep, adv, state.adv), fooled | state.fooled), None

    nothing_yet = jnp.zeros(len(image), bool)
    runs = jnp.arange(attack.num_runs(budget, num_classes))
    return jax.lax.scan(run, (image, nothing_yet), runs)[0][0]

  return run_all
