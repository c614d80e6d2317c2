"""Attacks that can be stopped between any two steps.

Long attacks are worth cutting into pieces: between two pieces the images that
have fallen leave, and the others are packed closer (`suite`). Such an attack is
a start and a step over a state with one row per image; `whole` joins them into
a plain attack.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.attacks.gradient import Budget, LogitsFn, check_given
from jax_robust_kd.core import Array, fold_in


class Problem(NamedTuple):
  """What an attack is given, one row per image.

  Attributes:
    rng: [B] keys of this run.
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


class Stepwise(NamedTuple):
  """An attack in pieces.

  Its state is a NamedTuple of arrays, all [B, ...], among them `adv` [B, H, W,
  C], the point to report, inside the ball and [0, 1], and `fooled` [B] bool,
  whether it is misclassified.

  Attributes:
    init: Problem -> state.
    step: (Problem, index, state) -> state, with index a scalar int32.
    num_runs: (budget, num_classes) -> restarts times targets; each run starts
      from the image.
    num_steps: budget -> steps of a run.
    piece: steps after which fallen images leave for the first time.
  """

  init: Callable[[Problem], Any]
  step: Callable[[Problem, Array, Any], Any]
  num_runs: Callable[[Budget, int], int]
  num_steps: Callable[[Budget], int]
  piece: int


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


def whole(attack: Stepwise) -> Callable:
  """Returns the plain attack: all runs, one after the other.

  Returns:
    (rng, logits_fn, image, label, budget) -> adv [B, H, W, C]: the first point
    that is misclassified, or that of the last run.
  """

  def run_all(
    rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
  ) -> Array:
    check_given(image, budget, ('linf', 'l2', 'l1'))
    more = (rng,) if budget.num_eot > 1 else ()
    num_classes = jax.eval_shape(logits_fn, image, *more).shape[-1]

    def run(best, number):
      adv, fooled = best
      problem = Problem(
        fold_in(rng, number), logits_fn, image, label, budget, number
      )
      state = attack.init(problem)
      state = advance(attack, problem, state, 0, attack.num_steps(budget))
      keep = fooled[:, None, None, None]
      return (jnp.where(keep, adv, state.adv), fooled | state.fooled), None

    nobody = jnp.zeros(len(image), bool)
    runs = jnp.arange(attack.num_runs(budget, num_classes))
    return jax.lax.scan(run, (image, nobody), runs)[0][0]

  return run_all


def plain(attack: Callable | Stepwise) -> Callable:
  """Returns an entry of ATTACKS as (rng, logits_fn, image, label, budget)."""
  return whole(attack) if isinstance(attack, Stepwise) else attack
