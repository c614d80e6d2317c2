"""Accuracy without and under attack, and what makes the number count.

An image is robust only if it is classified correctly clean and under every
attack of the suite. No image is dropped: the last batch is padded. Every
adversarial image is checked on the host, in float64, to be inside the ball.
"""

from collections.abc import Callable
import math
from pathlib import Path
from typing import NamedTuple
import zipfile
import zlib

import jax
import numpy as np

from jax_robust_kd import data, parallel
from jax_robust_kd.attacks import Budget, parse_attack
from jax_robust_kd.core import PyTree, RunError, image_keys
from jax_robust_kd.losses import margin

_ROUNDING = 1e-6  # float32 rounding allowed outside of the ball


class Attacked(NamedTuple):
  """What an attack left of some images.

  Attributes:
    adv: [N, H, W, C] float32.
    margin: [N] largest wrong logit minus the right one; < 0 is correct.
  """

  adv: np.ndarray
  margin: np.ndarray


def make_attack(
  forward: Callable, spec: str, budget: Budget, seed: int
) -> Callable:
  """Builds `attack(variables, split, batch_size, rows) -> Attacked`.

  It compiles once. `rows` chooses images of the split; None is all.

  Args:
    forward: (variables, image, mode) -> Output.
    spec: an attack such as 'pgd-20', or 'clean' for none.
    budget: the threat model.
    seed: the key of an image is a fold of it, of `spec` and of the image's
      place in the split, so that batches do not matter.

  Raises:
    UserError: an unknown attack.
  """
  attack = None
  if spec != 'clean':
    attack, budget = parse_attack(spec, budget)
  # Not hash(): that differs from one process to the next.
  name_code = zlib.crc32(spec.encode())

  def on_device(variables, batch):
    with jax.default_matmul_precision('highest'):
      image = data.to_float(batch['image'])
      logits_fn = lambda x: forward(variables, x, 'eval').logits  # noqa: E731
      adv = image
      if attack is not None:
        key = jax.random.fold_in(jax.random.key(seed), name_code)
        keys = image_keys(key, batch['index'])
        adv = attack(keys, logits_fn, image, batch['label'], budget)
      return adv, margin(logits_fn(adv), batch['label'])

  compiled = parallel.pmap_eval(on_device)

  def run(variables, split, batch_size, rows=None) -> Attacked:
    parts = []
    for batch in data.eval_batches(
      split,
      batch_size=batch_size,
      num_local_devices=jax.local_device_count(),
      rows=rows,
    ):
      mask = batch.pop('mask').reshape(-1)
      adv, value = jax.tree.map(_flat, compiled(variables, batch))
      image = _flat(batch['image']).astype(np.float64) / 255
      check_inside(adv, image, budget.norm, budget.epsilon)
      parts.append(Attacked(adv[mask], value[mask]))
    return Attacked(
      *(np.concatenate(part) for part in zip(*parts, strict=True))
    )

  return run


def _flat(x) -> np.ndarray:
  """Joins the device and batch dimensions."""
  x = np.asarray(x)
  return x.reshape(-1, *x.shape[2:])


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
  order = np.inf if norm == 'linf' else 2
  largest = np.linalg.norm(delta, ord=order, axis=1).max()
  assert largest <= epsilon + _ROUNDING, f'|delta| = {largest} > {epsilon}'


def evaluate_suite(
  *,
  forward: Callable,
  variables: PyTree,
  split: data.Split,
  suite: tuple[str, ...],
  budget: Budget,
  seed: int,
  batch_size: int,
  flags_file: Path | None = None,
  identity: str = '',
  show: Callable[[str], None] = lambda text: None,
) -> dict[str, np.ndarray]:
  """Returns, for 'clean' and each attack, which images stay correct.

  Each attack runs on all images that are correct without it. After each one
  the flags are written to `flags_file`, and an evaluation that is started
  again goes on from there.

  Args:
    forward: (variables, image, mode) -> Output.
    variables: the weights to evaluate.
    split: the images.
    suite: attacks such as 'pgd-20'.
    budget: the threat model.
    seed: of the attacks.
    batch_size: over all local devices.
    flags_file: .npz to keep the flags in, or None.
    identity: of the weights and the threat model; kept flags of any other are
      not used.
    show: told what has come out, in a few words.

  Returns:
    name -> [N] bool; 'robust' is the worst case over all.
  """
  flags = _load_flags(flags_file, identity)
  for spec in ('clean', *suite):
    if spec not in flags:
      attack = make_attack(forward, spec, budget, seed)
      correct = flags.get('clean', np.ones(len(split.label), bool))
      rows = np.flatnonzero(correct)
      correct = np.zeros_like(correct)
      if len(rows):
        attacked = attack(variables, split, batch_size, rows)
        correct[rows] = attacked.margin < 0
      flags[spec] = correct
      _save_flags(flags_file, identity, flags)
    show(f'{spec} {100 * flags[spec].mean():.1f} %')
  worst = np.all([flags[spec] for spec in ('clean', *suite)], axis=0)
  return {**flags, 'robust': worst}


def _load_flags(path: Path | None, identity: str) -> dict[str, np.ndarray]:
  if path is None or not path.exists():
    return {}
  try:
    with np.load(path) as file:
      kept = dict(file)
  except (OSError, ValueError, zipfile.BadZipFile):
    return {}  # damaged: the attacks are run again
  return kept if str(kept.pop('identity', '')) == identity else {}


def _save_flags(
  path: Path | None, identity: str, flags: dict[str, np.ndarray]
) -> None:
  if path is None:
    return
  temporary = path.with_name('unfinished.' + path.name)
  try:
    np.savez(temporary, identity=np.array(identity), **flags)  # type: ignore[arg-type]
    temporary.replace(path)
  except OSError as error:
    raise RunError(f'{path} cannot be written: {error.strerror}') from error


def interval(correct: int, total: int) -> tuple[float, float]:
  """Returns the 95 % Wilson interval of a share."""
  z = 1.96
  share = correct / total
  scale = 1 + z**2 / total
  centre = (share + z**2 / (2 * total)) / scale
  half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
  return centre - half / scale, centre + half / scale
