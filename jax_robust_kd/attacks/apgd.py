"""Auto-PGD: ascent that chooses its own step size (Croce & Hein 2020).

At checkpoints the step is halved, and the attack goes back to its best point,
when the loss rose too seldom or its best value has not moved. In l_1 (Croce &
Hein 2021) steps are sparse, the number of pixels they change follows the best
point, and the radius shrinks in three phases.

Where the reference program, github.com/fra31/auto-attack at a392200, departs
from the papers, the program is followed.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.attacks import l1
from jax_robust_kd.attacks.apgd_schedule import Row, schedule
from jax_robust_kd.attacks.apgd_state import (
  Evaluation,
  State,
  begin,
  check_progress,
  check_sparsity,
  record,
)
from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.stepwise import NumRuns, Problem, Stepwise
from jax_robust_kd.core import Array, fold_in
from jax_robust_kd.losses import cross_entropy, dlr, dlr_targeted, margin

_NUM_STEPS = 100  # where the budget names none
_TINY = 1e-12  # keeps the direction of a zero gradient finite
# What each image's key is folded with, for independent random numbers.
_START, _TARGET, _DRAW = 0, 1, 2  # from _DRAW on, one for each evaluation


class Objective(NamedTuple):
  """What is maximized.

  Attributes:
    loss: (logits [B, K], label [B], target [B]) -> [B].
    target: Problem -> [B] int32, the class to reach.
  """

  loss: Callable[[Array, Array, Array], Array]
  target: Callable[[Problem], Array]


def start(objective: Objective, problem: Problem, first: Array) -> State:
  """Returns the state at given first points [B, H, W, C].

  They are brought into the box; in l_1 also into the ball, which is three times
  as wide at first.
  """
  row = _row(problem.budget, 0)
  if problem.budget.norm == 'l1':
    first = _project(problem, row, first)
  first = jnp.clip(first, 0.0, 1.0)
  target = objective.target(problem)
  evaluation = _evaluate_at(objective, problem, 0, first, target)
  return _report(problem, row, begin(problem, row, first, evaluation, target))


def random_start(problem: Problem) -> Array:
  """Returns first points, not yet in the box, from the reference's law.

  In l_inf a uniform direction is stretched until one pixel moves by all of
  epsilon, in l_2 the points lie on the sphere, in l_1 the noise is normal.
  """
  image, budget = problem.image, problem.budget
  draw = jax.random.normal
  if budget.norm == 'linf':
    draw = partial(jax.random.uniform, minval=-1.0, maxval=1.0)
  keys = fold_in(problem.rng, _START)
  noise = jax.vmap(lambda key: draw(key, image.shape[1:]))(keys)
  if budget.norm == 'l1':
    return image + noise
  length = _l2(noise)
  if budget.norm == 'linf':
    length = jnp.max(jnp.abs(noise), (1, 2, 3), keepdims=True)
  return image + budget.epsilon * (noise / (length + _TINY))


def step(
  objective: Objective, problem: Problem, index: Array | int, state: State
) -> State:
  """Takes step `index`, counted from 0: one evaluation of the network."""
  row = _row(problem.budget, index + 1)
  sparse = problem.budget.norm == 'l1'
  move = _sparse_step if sparse else _momentum_step
  point = move(problem, row, state)
  evaluation = _evaluate_at(objective, problem, index + 1, point, state.target)
  after = record(state, point, evaluation)
  if not sparse:
    return check_progress(row, after)
  after = check_sparsity(problem, row, after)
  fresh = begin(problem, row, point, evaluation, state.target)
  after = jax.tree.map(partial(jnp.where, row.begins), fresh, after)
  return _report(problem, row, after)


def _row(budget: Budget, index: Array | int) -> Row:
  """The row of the schedule with this number; the start is row 0."""
  table = _table(budget)
  return jax.tree.map(lambda column: jnp.asarray(column)[index], table)


def _table(budget: Budget) -> Row:
  return schedule(budget.norm, budget.num_steps or _NUM_STEPS)


def _evaluate_at(
  objective: Objective,
  problem: Problem,
  number: Array | int,
  point: Array,
  target: Array,
) -> Evaluation:
  """Loss, gradient and verdict, from one pass forward and one back.

  Over several draws of the network's randomness the gradient is averaged; loss
  and verdict are those of the last draw, as in the reference program.
  """

  def evaluate(*keys):
    def total(x):
      logits = problem.logits_fn(x, *keys)
      loss = objective.loss(logits, problem.label, target)
      return jnp.sum(loss), (loss, margin(logits, problem.label) > 0)

    gradient, (loss, wrong) = jax.grad(total, has_aux=True)(point)
    return jax.lax.stop_gradient(Evaluation(loss, gradient, wrong))

  num_eot = problem.budget.num_eot
  if num_eot == 1:
    return evaluate()

  def one_more(draw, earlier):
    evaluation = evaluate(fold_in(keys, draw))
    return evaluation._replace(gradient=earlier.gradient + evaluation.gradient)

  keys = fold_in(problem.rng, _DRAW + number)
  size = point.shape[:1]
  zero = jnp.zeros(size)
  nothing = Evaluation(zero, jnp.zeros_like(point), zero > 0)
  evaluation = jax.lax.fori_loop(0, num_eot, one_more, nothing)
  return evaluation._replace(gradient=evaluation.gradient / num_eot)


def _report(problem: Problem, row: Row, state: State) -> State:
  """Hides what was found in a ball that is wider than the problem's."""
  counts = row.widening == 1.0
  return state._replace(
    adv=jnp.where(counts, state.adv, problem.image),
    fooled=state.fooled & counts,
  )


def _momentum_step(problem: Problem, row: Row, state: State) -> Array:
  """The next point in l_inf and l_2: a step, averaged with the one before."""
  direction = jnp.sign(state.gradient)
  if problem.budget.norm == 'l2':
    direction = state.gradient / (_l2(state.gradient) + _TINY)
  point = state.point
  ahead = point + state.step_size[:, None, None, None] * direction
  ahead = _project(problem, row, ahead)
  onward = point + (ahead - point) * row.inertia
  onward += (point - state.previous) * (1.0 - row.inertia)
  return _project(problem, row, onward)


def _sparse_step(problem: Problem, row: Row, state: State) -> Array:
  """The next point in l_1; at the start of a phase, the best in its ball."""
  direction = l1.sparse_direction(state.gradient, state.changed)
  ahead = state.point + state.step_size[:, None, None, None] * direction
  return _project(problem, row, jnp.where(row.begins, state.best, ahead))


def _project(problem: Problem, row: Row, point: Array) -> Array:
  """Into ball and box; in l_inf and l_2 with the reference's roundings."""
  image, norm = problem.image, problem.budget.norm
  radius = problem.budget.epsilon * row.widening
  if norm == 'l1':
    return l1.project(image, point - image, radius)
  if norm == 'linf':
    point = jnp.clip(point, image - radius, image + radius)
  else:
    delta = point - image
    length = _l2(delta)
    point = image + delta / (length + _TINY) * jnp.minimum(radius, length)
  return jnp.clip(point, 0.0, 1.0)


def _l2(x: Array) -> Array:
  """Length of each example, shaped to broadcast against it."""
  return jnp.sqrt(jnp.sum(x**2, (1, 2, 3), keepdims=True))


def _label(problem: Problem) -> Array:
  return problem.label


def _likely_class(problem: Problem) -> Array:
  """The class of rank 2 + run in the clean logits; ranks start over."""
  keys = [fold_in(problem.rng, _TARGET)] if problem.budget.num_eot > 1 else []
  logits = problem.logits_fn(problem.image, *keys)
  targets = _num_targets(problem.budget, logits.shape[-1])
  order = jax.lax.top_k(logits, targets + 1)[1]
  return order[:, 1 + problem.run % targets]


def _num_targets(budget: Budget, num_classes: int) -> int:
  """There are only so many wrong classes."""
  return min(budget.num_targets, num_classes - 1)


def _num_steps(budget: Budget) -> int:
  """In l_1 the starts of the second and third phase are steps, too."""
  return len(_table(budget).window) - 1


def _stepwise(objective: Objective, num_runs: NumRuns) -> Stepwise:
  return Stepwise(
    init=lambda problem: start(objective, problem, random_start(problem)),
    step=partial(step, objective),
    num_runs=num_runs,
    num_steps=_num_steps,
    chunk=25,
  )


def _cross_entropy(logits: Array, label: Array, _: Array) -> Array:
  return cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1]))


CE = Objective(_cross_entropy, _label)
DLR = Objective(lambda logits, label, _: dlr(logits, label), _label)
DLR_TARGETED = Objective(dlr_targeted, _likely_class)

# Runs of APGD_T go through all targets, then through all again.
APGD_CE = _stepwise(CE, lambda budget, _: budget.num_restarts)
APGD_DLR = _stepwise(DLR, lambda budget, _: budget.num_restarts)
APGD_T = _stepwise(
  DLR_TARGETED,
  lambda budget, classes: budget.num_restarts * _num_targets(budget, classes),
)
