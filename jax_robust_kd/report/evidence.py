"""What a report needs of the network itself: predictions and a curve.

Everything is computed from the checkpoint and the test images; the adversarial
images are those that the evaluation kept.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple
import zipfile

import numpy as np

from jax_robust_kd import data
from jax_robust_kd.attacks import Budget
from jax_robust_kd.core import Progress, UserError
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.report.reading import RunFiles
from jax_robust_kd.runtime.files import read_json, write_json

RADII = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)  # times the radius
CURVE_IMAGES = 500
CURVE_ATTACK = 'pgd-20'


class Evidence(NamedTuple):
  """Images of an evaluation, and what the network says about them.

  Attributes:
    image: [N, H, W, C] uint8.
    label: [N].
    class_names: [K].
    logits: [N, K] on the clean images.
    attacked: attack -> Attacked.
  """

  image: np.ndarray
  label: np.ndarray
  class_names: tuple[str, ...]
  logits: np.ndarray
  attacked: dict[str, 'Shown']


class Shown(NamedTuple):
  """Images that an attack left: which ones, [n, H, W, C], their logits."""

  rows: np.ndarray
  adv: np.ndarray
  logits: np.ndarray


def collect(model: Any, run: RunFiles, test: data.Split) -> Evidence:
  """Asks the network of a run about its clean and adversarial images.

  Args:
    model: from `jax_robust_kd.load`.
    run: its files.
    test: the images that were evaluated.
  """
  rows = np.arange(len(test.label))
  attacked = {}
  for name in run.attacks:
    kept = _kept_images(run, name)
    if kept is not None:
      attacked[name] = Shown(*kept, np.asarray(model(kept[1])))
  image = np.asarray(test.image[rows])
  label = np.asarray(test.label[rows])
  logits = np.asarray(model(image))
  return Evidence(image, label, tuple(model.class_names), logits, attacked)


def _kept_images(
  run: RunFiles, name: str
) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns rows and images of an attack, None where they were not kept."""
  cells = run.images.get(name, [])
  rows = np.array([i for i, cell in enumerate(cells) if cell], int)
  parts = []
  units = (run.folder / 'attacked').glob(f'{name}-*.npz')
  for path in sorted(units, key=lambda p: int(p.stem.rpartition('-')[2])):
    try:
      with np.load(path) as file:
        parts.append(file['adv'])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
      return None
  if not parts or sum(map(len, parts)) != len(rows):
    return None
  return rows, np.concatenate(parts)


def epsilon_curve(
  model: Any, test: data.Split, budget: Budget, folder: Path, progress: Progress
) -> dict[str, list[float]]:
  """Returns accuracy under PGD at several radii.

  What comes out is kept in epsilon.json, and read from there the next time.

  Args:
    model: from `jax_robust_kd.load`.
    test: images; the first 500 are attacked.
    budget: the threat model; its radius is multiplied by RADII.
    folder: for epsilon.json.
    progress: told what came out.

  Returns:
    'epsilon', 'correct' and 'total', lists of the same length.
  """
  test = data.Split(test.image[:CURVE_IMAGES], test.label[:CURVE_IMAGES])
  pixels = evaluate.pixels(test, np.arange(len(test.label)))
  digest = hashlib.sha256(pixels.tobytes()).hexdigest()
  identity = [model.sha256, CURVE_ATTACK, str(budget), list(RADII), digest]
  path = folder / 'epsilon.json'
  kept = _read_curve(path)
  if kept.get('identity') == identity:
    return kept['curve']
  curve: dict[str, list[float]] = {'epsilon': [], 'correct': [], 'total': []}
  correct = np.ones(len(test.label), bool)
  for times in RADII:
    correct = correct & _still_correct(model, test, budget, times)
    curve['epsilon'].append(budget.epsilon * times)
    curve['correct'].append(int(correct.sum()))
    curve['total'].append(len(correct))
    progress.say(f'epsilon {budget.epsilon * times:.4f}: {correct.mean():.1%}')
  write_json(path, {'identity': identity, 'curve': curve})
  return curve


def _still_correct(
  model: Any, test: data.Split, budget: Budget, times: float
) -> np.ndarray:
  """Returns [N] bool: correct under PGD at a multiple of the radius."""
  if times:
    radius = budget.epsilon * times
    budget = budget._replace(epsilon=radius, step_size=radius / 4)
  spec = CURVE_ATTACK if times else 'clean'
  attack = evaluate.make_split_attack(model.forward, spec, budget, 0, 256)
  return attack(model.variables, test).margin < 0


def _read_curve(path: Path) -> dict[str, Any]:
  try:
    content = json.loads(json.dumps(read_json(path)))
  except UserError:
    return {}  # missing or damaged: measured
  return content if isinstance(content, dict) else {}
