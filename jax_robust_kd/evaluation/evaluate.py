"""Accuracy without and under attack, image by image.

An image is robust only if it is classified correctly clean and under every
attack of the suite. No image is dropped: the last batch is padded. Every
adversarial image is checked on the host, in float64, to be inside the ball.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd import data
from jax_robust_kd.attacks import Budget, Result
from jax_robust_kd.attacks.batching import make_runner
from jax_robust_kd.attacks.engine import Images, run_jobs
from jax_robust_kd.attacks.packing import Attacked, Rows, Victim, make_attack
from jax_robust_kd.attacks.suites import num_steps, plan_deterministic
from jax_robust_kd.core import SILENT, Forward, LogitsFn, Progress, PyTree
from jax_robust_kd.evaluation.store import NO_FOLDER, Folder, open_store
from jax_robust_kd.runtime import parallel

AttackSplit = Callable[..., Attacked]  # (variables, split, index=None)


class Settings(NamedTuple):
  """How a network is evaluated.

  Attributes:
    suite: attacks such as 'pgd-20', and suites such as 'autoattack'.
    budget: the threat model.
    seed: seed of all random keys of the attacks.
    batch_size: largest number of images in a batch, over all local devices.
  """

  suite: tuple[str, ...]
  budget: Budget
  seed: int
  batch_size: int


def logits_of(forward: Forward) -> LogitsFn:
  """Returns (variables, image) -> logits, in evaluation mode."""
  return lambda variables, image: forward(variables, image, 'eval').logits


def pixels(split: data.Split, index: np.ndarray) -> np.ndarray:
  """Returns images of a split as [n, H, W, C] float32 in [0, 1]."""
  return np.asarray(split.image[index]) / np.float32(255)


def make_images(split: data.Split) -> Images:
  """Returns the images of a split as attacks take them."""
  label = np.asarray(split.label[np.arange(len(split.label))])
  return Images(lambda index: pixels(split, index), label)


def make_victim(
  forward: Forward, variables: PyTree, attacked: Forward | None = None
) -> Victim:
  """Returns a network as attacks take it, its weights on all local devices.

  Args:
    forward: (variables, image, mode) -> Output, float32; it decides flags.
    variables: the weights.
    attacked: (variables, image, mode) -> Output, what is attacked, such as the
      network in bfloat16; None: `forward`.
  """
  weights = parallel.replicate(variables, jax.local_devices())
  score_fn = Partial(logits_of(forward), weights)
  if attacked is None:
    return Victim(score_fn, score_fn)
  return Victim(Partial(logits_of(attacked), weights), score_fn)


def make_split_attack(
  forward: Forward, spec: str, budget: Budget, seed: int, batch_size: int
) -> AttackSplit:
  """Builds (variables, split, index=None) -> Attacked, compiled once.

  `index` says which images of the split are attacked, None all of them. Each
  process may ask for others.

  Args:
    forward: (variables, image, mode) -> Output.
    spec: an attack such as 'pgd-20', or 'clean' for none.
    budget: the threat model.
    seed: an image's key is a fold of it, of `spec` and of the image's index in
      the split, so that batches do not matter.
    batch_size: largest number of images in a batch, over all local devices.

  Raises:
    UserError: an unknown attack.
  """
  jobs = plan_deterministic(() if spec == 'clean' else (spec,), budget)
  logits_fn = logits_of(forward)
  compiled = {}

  def run(
    variables: PyTree, split: data.Split, index: np.ndarray | None = None
  ) -> Attacked:
    index = np.arange(len(split.label)) if index is None else index
    runner = make_runner(batch_size, len(split.label), split.image.shape[1:])
    if runner.size not in compiled:
      compiled[runner.size] = make_attack(jobs[-1], seed, runner)
    network = Partial(logits_fn, variables)
    label = np.asarray(split.label[index])
    rows = Rows(pixels(split, index), label, index.astype(np.int32))
    return compiled[runner.size](Victim(network, network), rows)

  return run


def evaluate_suite(
  victim: Victim,
  split: data.Split,
  settings: Settings,
  folder: Folder = NO_FOLDER,
  progress: Progress = SILENT,
) -> Result:
  """Runs a suite on a network, and keeps on disk what is done.

  Args:
    victim: the network, from `make_victim`.
    split: the images.
    settings: suite, threat model, seed and batch size.
    folder: keeps results; the same evaluation goes on from there.
    progress: told what was compiled, what has come out, and how many of the
      steps of `count_steps` are done.

  Raises:
    UserError: an attack that is refused, one class, logits not finite.
  """
  images = make_images(split)
  runner = make_runner(
    settings.batch_size, len(images.label), split.image.shape[1:], progress
  )
  jobs = plan_deterministic(settings.suite, settings.budget)
  store = open_store(folder, runner.identity, jobs)
  return run_jobs(jobs, victim, images, settings.seed, runner, store)


def count_steps(suite: tuple[str, ...], budget: Budget, classes: int) -> int:
  """Returns the steps that a suite takes at most for each image."""
  jobs = plan_deterministic(suite, budget)
  return sum(num_steps(job, classes) for job in jobs)


def interval(correct: int, total: int) -> tuple[float, float]:
  """Returns the 95 % Wilson interval of a share."""
  z = 1.96
  share = correct / total
  scale = 1 + z**2 / total
  centre = (share + z**2 / (2 * total)) / scale
  half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
  return centre - half / scale, centre + half / scale
