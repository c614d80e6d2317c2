"""AutoAttack and other suites: what survives every attack (Croce & Hein 2020).

An image counts as robust only if it is classified correctly and every attack
fails on it. Inside a named suite an attack sees only what those before it left;
any other attack sees all images that are correct without it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple
import zlib

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.attacks.jobs import Job, needs_gradient, num_steps
from jax_robust_kd.attacks.names import tell_few_classes
from jax_robust_kd.attacks.packing import (
  Attacked,
  Rows,
  make_attack,
  make_judge,
  make_probe,
)
from jax_robust_kd.attacks.programs import Runner
from jax_robust_kd.core import RunError, UserError


class Result(NamedTuple):
  """What a suite found of N images.

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


class Store(NamedTuple):
  """Where what was found is kept.

  A unit is one column of one pool of images, such as 'pgd-20-0'.

  Attributes:
    load: unit -> the arrays that `save` was given for it, or None.
    save: (unit, arrays) -> None.
    keep_adv: whether adversarial images are kept, and returned.
    mine: number of a unit -> whether it is this process's to find. The others
      are read after
    meet: name -> None, which waits for all processes.
  """

  load: Callable[[str], dict[str, np.ndarray] | None] = lambda unit: None
  save: Callable[[str, dict], None] = lambda unit, arrays: None
  keep_adv: bool = True
  mine: Callable[[int], bool] = lambda number: True
  meet: Callable[[str], None] = lambda name: None


NOWHERE = Store()


def run_jobs(
  jobs: list[Job],
  apply: Partial,
  judge: Partial,
  images: Callable[[np.ndarray], np.ndarray],
  label: np.ndarray,
  *,
  num_classes: int,
  seed: int,
  runner: Runner,
  store: Store = NOWHERE,
  show: Callable[[str], None] = lambda text: None,
) -> Result:
  """Runs jobs, a pool of images at a time.

  Args:
    jobs: from `plan`.
    apply: image -> logits, attacked.
    judge: image -> logits, decides; usually the same.
    images: rows -> [n, H, W, C] float32 in [0, 1].
    label: [N] int32.
    num_classes: K.
    seed: an image's key is a fold of it, of the column and of its row.
    runner: devices and batch size.
    store: where units are kept.
    show: told what has come out, in a few words.

  Returns:
    The flags, margins and images.

  Raises:
    UserError: one class, logits or gradients not finite.
  """
  tell_few_classes([job[1:3] for job in jobs], num_classes, show)
  judged = make_judge(jobs[0].budget, lambda: _key(seed, 'score'), runner)
  result = Result({}, {}, {})
  pool = partial(_take, images, label)
  behind = planned = 0

  def tick(steps: int) -> None:
    nonlocal behind
    behind += steps
    runner.tick(steps)

  for job in jobs:
    attack = make_job(job, seed, runner._replace(tick=tick), judged)
    run = lambda rows, attack=attack: attack(apply, judge, pool(rows))  # noqa: E731
    alive = np.ones(len(label), bool)
    for column in job.after:
      alive &= result.correct[column]
    size = runner.pool
    _record(result, job, alive, _in_pools(job, alive, size, run, store))
    if job.attack is None and any(map(needs_gradient, jobs)):
      probe = make_probe(job.budget, lambda: _key(seed, 'score'), runner)
      _check_gradients(lambda rows: probe(apply, pool(rows)), len(label), size)
    planned += num_steps(job, num_classes) * len(label)
    tick(planned - behind)  # images that fell left earlier
    show(f'{job.column} {100 * result.correct[job.column].mean():.1f} %')
  return _with_worst(result, jobs)


def _take(images: Callable, label: np.ndarray, rows: np.ndarray) -> Rows:
  return Rows(images(rows), label[rows], rows.astype(np.int32))


def _record(result: Result, job: Job, alive: np.ndarray, found: dict) -> None:
  """Puts a column into the result."""
  if job.attack is None:
    _check_finite(found['margin'])
  result.correct[job.column] = alive & (found['margin'] < 0)
  result.margin[job.column] = found['margin']
  if 'adv' in found:
    result.adv[job.column] = found['adv']


def _in_pools(
  job: Job, alive: np.ndarray, size: int, run: Callable, store: Store
) -> dict[str, np.ndarray]:
  """Returns what `run(rows)` finds, a pool at a time, NaN elsewhere."""
  columns = {'margin': np.full(len(alive), np.nan, np.float32)}
  pools = [
    first + np.flatnonzero(alive[first : first + size])
    for first in range(0, len(alive), size)
  ]
  units = {
    f'{job.column}-{number * size}': rows
    for number, rows in enumerate(pools)
    if len(rows)
  }
  kept = {}
  for number, (unit, rows) in enumerate(units.items()):
    kept[unit] = _load(store, unit, rows)
    if kept[unit] is None and store.mine(number):
      kept[unit] = _as_arrays(run(rows), job, store.keep_adv)
      store.save(unit, kept[unit])
  store.meet(job.column)
  for unit, rows in units.items():
    found = kept.pop(unit) or _load(store, unit, rows)
    if found is None:
      raise RunError(
        f'{unit} was found by another process but cannot be read here; give a '
        '--workdir that all processes share'
      )
    for name, values in found.items():
      if name not in columns:
        shape = (len(alive), *values.shape[1:])
        columns[name] = np.full(shape, np.nan, np.float32)
      columns[name][rows] = values
  return columns


def _load(store: Store, unit: str, rows: np.ndarray) -> dict | None:
  """Reads a unit, unless it was cut for another number of devices."""
  found = store.load(unit)
  if found is None or len(found['margin']) != len(rows):
    return None
  return found


def _check_finite(margin: np.ndarray) -> None:
  finite = np.isfinite(margin)
  if not finite.all():
    raise UserError(
      f'the logits of image {int(np.argmin(finite))} are not finite; the '
      'network must return finite logits on all images'
    )


def _check_gradients(probe: Callable, count: int, size: int) -> None:
  rows = np.arange(count)
  parts = [probe(rows[i : i + size]) for i in range(0, count, size)]
  finite = np.concatenate(parts)
  if not finite.all():
    raise UserError(
      f'the gradient of the logits by image {int(np.argmin(finite))} '
      'is not finite (as that of sqrt(x) at 0): attacks by gradients would '
      'stand still there and call it robust; mend the network'
    )


def make_job(
  job: Job, seed: int, runner: Runner, judged: Callable | None = None
) -> Callable:
  """Builds `run(apply, judge, rows) -> Attacked` of a job."""
  if judged is None:
    judged = make_judge(job.budget, lambda: _key(seed, 'score'), runner)
  return make_attack(
    job.column,
    job.attack,
    job.budget,
    lambda: _key(seed, job.column),
    judged,
    runner,
  )


def _as_arrays(found: Attacked, job: Job, keep_adv: bool) -> dict:
  arrays = {'margin': found.margin}
  if keep_adv and job.attack is not None:
    arrays['adv'] = found.adv
  return arrays


def _key(seed: int, column: str) -> jax.Array:
  # Not hash(): that differs from one process to the next.
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(column.encode()))


def _with_worst(result: Result, jobs: list[Job]) -> Result:
  """Adds a column for each named suite, and 'robust'."""
  correct = dict(result.correct)
  for job in jobs:
    name, dot, _ = job.column.partition('.')
    if dot:
      correct[name] = result.correct[job.column]
  robust = np.all(list(correct.values()), axis=0)
  return result._replace(correct={**correct, 'robust': robust})
