"""Accuracy without and under attack, and what makes the number count.

An image is robust only if it is classified correctly clean and under every
attack of the suite. No image is dropped: the last batch is padded. Every
adversarial image is checked on the host, in float64, to be inside the ball.
"""

from collections.abc import Callable
import math
from pathlib import Path
import zipfile

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd import data
from jax_robust_kd.attacks import Budget, Result, packing, programs
from jax_robust_kd.attacks.jobs import num_steps, plan_keyless
from jax_robust_kd.attacks.suite import Store, make_job, run_jobs
from jax_robust_kd.core import PyTree, RunError
from jax_robust_kd.runtime import faults, parallel, processes


def logits_of(forward: Callable) -> Callable:
  """Returns (variables, image) -> logits, in evaluation mode."""
  return lambda variables, image: forward(variables, image, 'eval').logits


def pixels(split: data.Split, rows: np.ndarray) -> np.ndarray:
  """Returns images of a split as float32 in [0, 1]."""
  return np.asarray(split.image[rows]) / np.float32(255)


def make_attack(
  forward: Callable, spec: str, budget: Budget, seed: int, batch_size: int
) -> Callable:
  """Builds `attack(variables, split, rows) -> Attacked` of rows of a split.

  Of all rows, where none are given. Each process may ask for others.

  It compiles once.

  Args:
    forward: (variables, image, mode) -> Output.
    spec: an attack such as 'pgd-20', or 'clean' for none.
    budget: the threat model.
    seed: an image's key is a fold of it, of `spec` and of the image's place in
      the split, so that batches do not matter.
    batch_size: over all local devices.

  Raises:
    UserError: an unknown attack.
  """
  jobs = plan_keyless(() if spec == 'clean' else (spec,), budget)
  network = logits_of(forward)
  compiled = {}

  def run(
    variables: PyTree, split: data.Split, rows: np.ndarray | None = None
  ) -> packing.Attacked:
    rows = np.arange(len(split.label)) if rows is None else rows
    runner = programs.make_runner(
      batch_size, len(split.label), split.image.shape[1:]
    )
    if runner.size not in compiled:
      compiled[runner.size] = make_job(jobs[-1], seed, runner)
    apply = Partial(network, variables)
    images = packing.Rows(
      pixels(split, rows), np.asarray(split.label[rows]), rows.astype(np.int32)
    )
    return compiled[runner.size](apply, apply, images)

  return run


def evaluate_suite(
  *,
  forward: Callable,
  variables: PyTree,
  split: data.Split,
  suite: tuple[str, ...],
  budget: Budget,
  seed: int,
  batch_size: int,
  attack_forward: Callable | None = None,
  folder: Path | None = None,
  identity: str = '',
  keep_adv: bool = True,
  show: Callable[[str], None] = lambda text: None,
  tick: Callable[[int], None] = lambda steps: None,
) -> Result:
  """Runs a suite on a network, keeping on disk what is done.

  Args:
    forward: (variables, image, mode) -> Output, float32; it decides.
    variables: the weights to evaluate.
    split: the images.
    suite: attacks such as 'pgd-20' or 'autoattack'.
    budget: the threat model.
    seed: of the attacks.
    batch_size: over all local devices.
    attack_forward: what is attacked, such as in bfloat16; None: the same.
    folder: for a file of each attack and pool of images; an evaluation that
      is started again goes on from them. The processes of a run share the
      pools, and see one another's files. None keeps nothing: each does all.
    identity: of the weights and the threat model; what was kept for any other
      is not used.
    keep_adv: whether adversarial images are kept too.
    show: told what was compiled and what has come out.
    tick: told how many of the steps of `count_steps` are behind.

  Raises:
    UserError: an attack that is refused, one class, logits not finite.
  """
  weights = parallel.replicate(variables, jax.local_devices())
  network = Partial(logits_of(forward), weights)
  attacked = network
  if attack_forward is not None:
    attacked = Partial(logits_of(attack_forward), *network.args)
  label = np.asarray(split.label[np.arange(len(split.label))])
  runner = programs.make_runner(batch_size, len(label), split.image.shape[1:])
  if folder is not None:
    _make_folder(folder)
  return run_jobs(
    plan_keyless(suite, budget),
    attacked,
    network,
    lambda rows: pixels(split, rows),
    label,
    num_classes=num_classes(network, split),
    seed=seed,
    runner=runner._replace(say=show, tick=tick),
    store=_make_store(folder, f'{identity} {runner.identity}', keep_adv),
    show=show,
  )


def _make_store(folder: Path | None, identity: str, keep_adv: bool) -> Store:
  """Keeps units in a folder, where the processes of a run share them."""
  if folder is None:
    return Store(keep_adv=keep_adv)
  return Store(
    lambda unit: _load(folder, unit, identity),
    lambda unit, arrays: _save(folder, unit, identity, arrays),
    keep_adv,
    processes.owns,
    processes.barrier,
  )


def num_classes(network: Partial, split: data.Split) -> int:
  """Returns K."""
  like = pixels(split, np.arange(1))
  return jax.eval_shape(lambda apply, x: apply(x), network, like).shape[-1]


def count_steps(suite: tuple[str, ...], budget: Budget, classes: int) -> int:
  """Returns the steps that a suite takes at most for each image."""
  return sum(num_steps(job, classes) for job in plan_keyless(suite, budget))


def _make_folder(folder: Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _not_written(folder, error) from error


def _not_written(path: Path, error: OSError) -> RunError:
  return RunError(f'{path} cannot be written: {error.strerror}')


def _load(folder: Path, unit: str, identity: str) -> dict | None:
  try:
    with np.load(folder / f'{unit}.npz') as file:
      kept = dict(file)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    return None  # missing or damaged: it is run again
  return kept if str(kept.pop('identity', '')) == identity else None


def _save(folder: Path, unit: str, identity: str, arrays: dict) -> None:
  path = folder / f'{unit}.npz'
  temporary = path.with_name('unfinished.' + path.name)
  faults.point('keep', unit=unit)
  try:
    np.savez(temporary, identity=np.array(identity), **arrays)
    temporary.replace(path)
  except OSError as error:
    raise _not_written(path, error) from error
  faults.point('kept', unit=unit)


def interval(correct: int, total: int) -> tuple[float, float]:
  """Returns the 95 % Wilson interval of a share."""
  z = 1.96
  share = correct / total
  scale = 1 + z**2 / total
  centre = (share + z**2 / (2 * total)) / scale
  half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
  return centre - half / scale, centre + half / scale
