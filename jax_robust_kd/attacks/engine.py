"""Runs suites: which images survive every attack (Croce & Hein 2020).

An image counts as robust only if it is classified correctly and every attack
fails on it. Inside a named suite an attack sees only what those before it left;
any other attack sees all images that are correct without it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jax_robust_kd.attacks.batching import Runner
from jax_robust_kd.attacks.packing import (
  Attacked,
  Rows,
  Score,
  Victim,
  count_classes,
  make_attack,
  make_gradient_check,
  make_score,
)
from jax_robust_kd.attacks.suites import (
  Job,
  check_num_classes,
  needs_gradient,
  num_steps,
)
from jax_robust_kd.core import Progress, RunError, UserError


class Result(NamedTuple):
  """The result of a suite on N images.

  Attributes:
    correct: column -> [N] bool, 'clean' first; False where an image was not
      attacked any more. A named suite is a column too, and 'robust' the worst
      case over all.
    margin: column -> [N] float32 after the attack, NaN where not attacked.
    adv: column -> [N, H, W, C] float32, NaN where not attacked.
  """

  correct: dict[str, np.ndarray]
  margin: dict[str, np.ndarray]
  adv: dict[str, np.ndarray]


class Images(NamedTuple):
  """Images to attack, read when they are needed.

  Attributes:
    pixels: rows [n] -> [n, H, W, C] float32 in [0, 1].
    label: [N] int32.
  """

  pixels: Callable[[np.ndarray], np.ndarray]
  label: np.ndarray

  def rows(self, index: np.ndarray) -> Rows:
    """Returns some of the images."""
    return Rows(self.pixels(index), self.label[index], index.astype(np.int32))


class Store(NamedTuple):
  """Keeps results, so that an evaluation goes on where it was stopped.

  A unit is one column of one pool of images, such as 'pgd-20-0'.

  Attributes:
    load: unit -> the arrays that `save` was given for it, or None.
    save: (unit, arrays) -> None.
    keep_adv: whether adversarial images are kept, and returned.
    owns: number of a unit -> whether this process computes it. The others are
      read after `barrier`.
    barrier: name -> None, waits for all processes.
  """

  load: Callable[[str], dict[str, np.ndarray] | None] = lambda unit: None
  save: Callable[[str, dict], None] = lambda unit, arrays: None
  keep_adv: bool = True
  owns: Callable[[int], bool] = lambda number: True
  barrier: Callable[[str], None] = lambda name: None


NOWHERE = Store()


def run_jobs(
  jobs: list[Job],
  victim: Victim,
  images: Images,
  seed: int,
  runner: Runner,
  store: Store = NOWHERE,
) -> Result:
  """Runs jobs, a pool of images at a time.

  Args:
    jobs: from `plan`.
    victim: the network.
    images: pixels and labels.
    seed: seed of all random keys; an image's key is a fold of it, of the
      column and of its index.
    runner: batch size, devices and progress.
    store: where units are kept.

  Returns:
    The flags, margins and adversarial images.

  Raises:
    UserError: one class, logits or gradients not finite.
  """
  clean, count = jobs[0].budget, len(images.label)
  example = images.pixels(np.arange(1))
  num_classes = count_classes(victim.logits_fn, example, clean)
  say, tick = runner.progress
  check_num_classes(jobs, num_classes, say)
  done = planned = 0

  def tick_and_count(steps: int) -> None:
    nonlocal done
    done += steps
    tick(steps)

  runner = runner._replace(progress=Progress(say, tick_and_count))
  score = make_score(clean, seed, runner)
  result = Result({}, {}, {})
  for job in jobs:
    attack = make_attack(job, seed, runner, score)
    still_correct = np.ones(count, bool)
    for column in job.after:
      still_correct &= result.correct[column]
    run = lambda index, attack=attack: attack(victim, images.rows(index))  # noqa: E731
    columns = _in_pools(job, still_correct, runner.pool, run, store)
    _record(result, job, still_correct, columns)
    if job.attack is None and any(map(needs_gradient, jobs)):
      _check_gradients(
        victim, images, make_gradient_check(clean, seed, runner), runner.pool
      )
    planned += num_steps(job, num_classes) * count
    tick_and_count(planned - done)  # the steps of images that were dropped
    say(f'{job.column} {100 * result.correct[job.column].mean():.1f} %')
  return _with_worst(result, jobs)


def _record(
  result: Result,
  job: Job,
  still_correct: np.ndarray,
  columns: dict[str, np.ndarray],
) -> None:
  """Puts a column into the result."""
  if job.attack is None:
    _check_finite(columns['margin'])
  result.correct[job.column] = still_correct & (columns['margin'] < 0)
  result.margin[job.column] = columns['margin']
  if 'adv' in columns:
    result.adv[job.column] = columns['adv']


def _in_pools(
  job: Job,
  still_correct: np.ndarray,
  size: int,
  run: Callable[[np.ndarray], Attacked],
  store: Store,
) -> dict[str, np.ndarray]:
  """Returns the arrays of `run(index)`, a pool at a time, NaN elsewhere."""
  count = len(still_correct)
  columns = {'margin': np.full(count, np.nan, np.float32)}
  pools = {
    f'{job.column}-{first}': first
    + np.flatnonzero(still_correct[first : first + size])
    for first in range(0, count, size)
  }
  pools = {unit: index for unit, index in pools.items() if len(index)}
  results = {}
  for number, (unit, index) in enumerate(pools.items()):
    results[unit] = _load(store, unit, index)
    if results[unit] is None and store.owns(number):
      results[unit] = _as_arrays(run(index), job, store.keep_adv)
      store.save(unit, results[unit])
  store.barrier(job.column)
  for unit, index in pools.items():
    arrays = results.pop(unit) or _load(store, unit, index)
    if arrays is None:
      raise RunError(
        f'{unit} was computed by another process but cannot be read here; give '
        'a --workdir that all processes share'
      )
    for name, values in arrays.items():
      if name not in columns:
        shape = (count, *values.shape[1:])
        columns[name] = np.full(shape, np.nan, np.float32)
      columns[name][index] = values
  return columns


def _load(store: Store, unit: str, index: np.ndarray) -> dict | None:
  """Reads a unit, unless it was cut for another number of devices."""
  arrays = store.load(unit)
  if arrays is None or len(arrays['margin']) != len(index):
    return None
  return arrays


def _check_finite(margin: np.ndarray) -> None:
  finite = np.isfinite(margin)
  if not finite.all():
    raise UserError(
      f'the logits of image {int(np.argmin(finite))} are not finite; the '
      'network must return finite logits on all images'
    )


def _check_gradients(
  victim: Victim, images: Images, is_finite: Score, pool: int
) -> None:
  """Refuses a network whose gradient at an image is not finite."""
  index = np.arange(len(images.label))
  finite = np.concatenate([
    is_finite(victim.logits_fn, images.rows(index[first : first + pool]))
    for first in range(0, len(index), pool)
  ])  # fmt: skip
  if not finite.all():
    raise UserError(
      f'the gradient of the logits by image {int(np.argmin(finite))} '
      'is not finite (as that of sqrt(x) at 0): attacks by gradients would '
      'stand still there and call it robust; mend the network'
    )


def _as_arrays(attacked: Attacked, job: Job, keep_adv: bool) -> dict:
  arrays = {'margin': attacked.margin}
  if keep_adv and job.attack is not None:
    arrays['adv'] = attacked.adv
  return arrays


def _with_worst(result: Result, jobs: list[Job]) -> Result:
  """Adds a column for each named suite, and 'robust'."""
  correct = dict(result.correct)
  for job in jobs:
    name, dot, _ = job.column.partition('.')
    if dot:
      correct[name] = result.correct[job.column]
  robust = np.all(list(correct.values()), axis=0)
  return result._replace(correct={**correct, 'robust': robust})
