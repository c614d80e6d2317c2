"""Runs one attack on any number of images, and drops misclassified ones.

Each image has its own key, so its result does not depend on its neighbours.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
import zlib

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.attacks.batching import Runner, make_program
from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.stepwise import (
  PlainAttack,
  Problem,
  Stepwise,
  advance,
)
from jax_robust_kd.attacks.suites import Job
from jax_robust_kd.core import PyTree, image_keys
from jax_robust_kd.losses import margin
from jax_robust_kd.runtime import faults

_ROUNDING = 1e-6  # float32 rounding allowed outside of the ball
_ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}


class Victim(NamedTuple):
  """A network under attack.

  Both are image [B, H, W, C] -> logits [B, K] as `jax.tree_util.Partial`, whose
  arrays are arguments of the compiled programs. With `budget.num_eot` above 1
  they take keys [B] as second argument.

  Attributes:
    logits_fn: what is attacked, such as the network in bfloat16.
    score_fn: what decides whether an image is misclassified; usually the same.
  """

  logits_fn: Partial
  score_fn: Partial


class Rows(NamedTuple):
  """Images to attack.

  Attributes:
    image: [N, H, W, C] float32 in [0, 1].
    label: [N] int32.
    row: [N] int32, index of each image in the data set; its key is a fold of
      it.
  """

  image: np.ndarray
  label: np.ndarray
  row: np.ndarray


class Attacked(NamedTuple):
  """The result of an attack.

  Attributes:
    adv: [N, H, W, C] float32.
    margin: [N] largest wrong logit minus the right one; < 0 is correct.
  """

  adv: np.ndarray
  margin: np.ndarray


Score = Callable[[Partial, Rows], np.ndarray]  # -> [N]
RunAttack = Callable[[Victim, Rows], Attacked]
FindAdv = Callable[[Partial, Rows], np.ndarray]  # -> [N, H, W, C]


def make_score(budget: Budget, seed: int, runner: Runner) -> Score:
  """Builds (score_fn, rows) -> margin [N], decided in full float32."""
  program = make_program('score', partial(_score, budget), runner)
  return lambda score_fn, rows: program(
    score_fn, _scalars(seed, 'score', 0), rows
  )


def _score(budget: Budget, shared: tuple, rows: Rows) -> jax.Array:
  apply, scalars = shared
  draws = (_keys(scalars, rows),) if budget.num_eot > 1 else ()
  logits = apply(rows.image, *draws)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return margin(logits, jnp.asarray(rows.label))


def make_gradient_check(budget: Budget, seed: int, runner: Runner) -> Score:
  """Builds (logits_fn, rows) -> [N] bool: is the gradient finite?"""
  program = make_program(
    'gradient', partial(_gradient_is_finite, budget), runner, seldom=True
  )
  return lambda logits_fn, rows: program(
    logits_fn, _scalars(seed, 'score', 0), rows
  )


def _gradient_is_finite(budget: Budget, shared: tuple, rows: Rows) -> jax.Array:
  gradient = jax.grad(
    lambda x: jnp.sum(_score(budget, shared, rows._replace(image=x)))
  )(rows.image)
  return jnp.all(jnp.isfinite(gradient), axis=(1, 2, 3))


def make_attack(
  job: Job, seed: int, runner: Runner, score: Score | None = None
) -> RunAttack:
  """Builds (victim, rows) -> Attacked.

  Args:
    job: the attack and its budget; no attack for 'clean'.
    seed: seed of all random keys; an image's key is a fold of it, of the job's
      column and of the image's index.
    runner: batch size, devices and progress.
    score: from `make_score`, to share its program; None builds one.
  """
  score = score or make_score(job.budget, seed, runner)
  if isinstance(job.attack, Stepwise):
    find_adv = _in_chunks(job, job.attack, seed, runner)
  elif job.attack is None:
    find_adv = lambda logits_fn, rows: rows.image  # noqa: E731
  else:
    find_adv = _at_once(job, job.attack, seed, runner)

  def run(victim: Victim, rows: Rows) -> Attacked:
    adv = find_adv(victim.logits_fn, rows)
    faults.point('attacked', column=job.column)
    check_inside(adv, rows.image, job.budget.norm, job.budget.epsilon)
    return Attacked(adv, score(victim.score_fn, rows._replace(image=adv)))

  return run


def _scalars(seed: int, column: str, run: int) -> dict:
  """Returns what all images of a program share: the key and the run."""
  # Not hash(): that differs from one process to the next.
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(column.encode()))
  key = jax.random.fold_in(key, run)
  return {'key': np.asarray(jax.random.key_data(key)), 'run': np.int32(run)}


def _keys(scalars: dict, rows: Rows) -> jax.Array:
  """One key per image, [n], of this column and run."""
  return image_keys(
    jax.random.wrap_key_data(scalars['key']), jnp.asarray(rows.row)
  )


def _at_once(
  job: Job, attack: PlainAttack, seed: int, runner: Runner
) -> FindAdv:
  """Builds (logits_fn, rows) -> adv of an attack that is one function."""
  program = make_program(
    job.column, partial(_whole, attack, job.budget), runner
  )
  return lambda logits_fn, rows: program(
    logits_fn, _scalars(seed, job.column, 0), rows
  )


def _whole(
  attack: PlainAttack, budget: Budget, shared: tuple, rows: Rows
) -> jax.Array:
  apply, scalars = shared
  image, label = jnp.asarray(rows.image), jnp.asarray(rows.label)
  return attack(_keys(scalars, rows), apply, image, label, budget)


def _problem(budget: Budget, shared: tuple, rows: Rows) -> Problem:
  apply, scalars = shared
  rng, run = _keys(scalars, rows), scalars['run']
  image, label = jnp.asarray(rows.image), jnp.asarray(rows.label)
  return Problem(rng, apply, image, label, budget, run)


def _start(
  attack: Stepwise, budget: Budget, shared: tuple, rows: Rows
) -> PyTree:
  return attack.init(_problem(budget, shared, rows))


def _advance(
  attack: Stepwise, budget: Budget, shared: tuple, rows: tuple[Rows, PyTree]
) -> PyTree:
  span = shared[1]['first'], shared[1]['last']
  problem = _problem(budget, shared, rows[0])
  return advance(attack, problem, rows[1], *span)


def _in_chunks(
  job: Job, attack: Stepwise, seed: int, runner: Runner
) -> FindAdv:
  """Builds (logits_fn, rows) -> adv; misclassified images leave early."""
  settings = attack, job.budget
  start = make_program(
    f'{job.column} (start)', partial(_start, *settings), runner, seldom=True
  )
  step = make_program(job.column, partial(_advance, *settings), runner)

  def run_once(apply, rows: Rows, number: int) -> tuple:
    scalars = _scalars(seed, job.column, number)
    state = start(apply, scalars, rows)
    for first, last in _spans(attack.num_steps(job.budget), attack.chunk):
      still_correct = np.flatnonzero(~state.fooled)
      if not len(still_correct):
        break
      part = jax.tree.map(lambda x: x[still_correct], (rows, state))
      span = {'first': np.int32(first), 'last': np.int32(last)}
      moved = step(apply, scalars | span, part)
      runner.progress.tick((last - first) * len(rows.label))
      state = jax.tree.map(lambda a, b: _put(a, still_correct, b), state, moved)
    return state.adv, state.fooled

  def find_adv(apply, rows: Rows) -> np.ndarray:
    num_classes = count_classes(apply, rows.image[:1], job.budget)
    adv, still_correct = rows.image.copy(), np.arange(len(rows.label))
    for number in range(attack.num_runs(job.budget, num_classes)):
      if not len(still_correct):
        break
      part = jax.tree.map(lambda x: x[still_correct], rows)
      adv[still_correct], fooled = run_once(apply, part, number)
      still_correct = still_correct[~fooled]
    return adv

  return find_adv


def _spans(steps: int, chunk: int) -> Iterator[tuple[int, int]]:
  """Yields the first step of each chunk, and the first one behind it.

  A chunk is as long as all before it: most images are misclassified early, and
  one that is misclassified waits no longer than it took.
  """
  first, last = 0, min(chunk, steps)
  while first < steps:
    yield first, last
    first, last = last, min(2 * last, steps)


def count_classes(logits_fn: Partial, image: np.ndarray, budget: Budget) -> int:
  """Returns K; nothing is computed."""
  key = jax.ShapeDtypeStruct((len(image),), jax.random.key(0).dtype)
  draws = (key,) if budget.num_eot > 1 else ()
  return jax.eval_shape(lambda f, *x: f(*x), logits_fn, image, *draws).shape[-1]


def _put(x: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
  x = x.copy()
  x[rows] = values
  return x


def check_inside(
  adv: np.ndarray, image: np.ndarray, norm: str, epsilon: float
) -> None:
  """Checks in float64 that `adv` is in the ball around `image` and in [0, 1].

  Raises:
    AssertionError: it is not; that is a bug of the attack, never the user's.
  """
  adv = adv.astype(np.float64)
  assert np.all(np.isfinite(adv)), 'an adversarial image is not finite'
  assert adv.min() >= 0 and adv.max() <= 1, 'an adversarial image left [0, 1]'
  delta = (adv - image).reshape(len(adv), -1)
  largest = np.linalg.norm(delta, ord=_ORDERS[norm], axis=1).max()
  limit = epsilon + _ROUNDING * max(1.0, epsilon)
  assert largest <= limit, f'|delta| = {largest} > {epsilon}'
