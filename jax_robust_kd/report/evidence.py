"""What a report needs of the network itself: predictions and a curve.

Everything is computed from the checkpoint and the test images; the adversarial
images are those that the evaluation kept.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
import zipfile

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd import data
from jax_robust_kd.attacks import Budget, ascent
from jax_robust_kd.attacks.batching import make_program, make_runner
from jax_robust_kd.core import Array, Progress, UserError, image_keys
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.evaluation.store import data_sha256
from jax_robust_kd.losses import cross_entropy, margin
from jax_robust_kd.report.reading import RunFiles
from jax_robust_kd.runtime import parallel
from jax_robust_kd.runtime.files import read_json, write_json

RADII = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)  # times the radius
CURVE_IMAGES = 500
CURVE_STEPS = 20


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
    kept = kept_images(run, name)
    if kept is not None:
      attacked[name] = Shown(*kept, np.asarray(model(kept[1])))
  image = np.asarray(test.image[rows])
  label = np.asarray(test.label[rows])
  logits = np.asarray(model(image))
  return Evidence(image, label, tuple(model.class_names), logits, attacked)


def kept_images(
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

  One program is compiled for all of them. What comes out is kept in
  epsilon.json, and read from there the next time.

  Args:
    model: from `jax_robust_kd.load`.
    test: images; the first 500 are attacked.
    budget: the threat model, l_inf or l_2; its radius is multiplied by RADII.
    folder: for epsilon.json.
    progress: told what came out.

  Returns:
    'epsilon', 'correct' and 'total', lists of the same length.
  """
  count = min(CURVE_IMAGES, len(test.label))
  test = data.Split(test.image[:count], test.label[:count])
  identity = [
    model.network.sha256, CURVE_STEPS, budget.norm, budget.epsilon,
    list(RADII), data_sha256(test),
  ]  # fmt: skip
  path = folder / 'epsilon.json'
  kept = _read_curve(path)
  if kept.get('identity') == identity:
    return kept['curve']
  image = evaluate.pixels(test, np.arange(count))
  label = np.asarray(test.label[np.arange(count)])
  runner = make_runner(256, count, image.shape[1:])
  program = make_program('epsilon', partial(_correct, budget.norm), runner)
  network = _on_devices(model)
  rows = {'image': image, 'label': label, 'row': np.arange(count)}
  curve: dict[str, list[float]] = {'epsilon': [], 'correct': [], 'total': []}
  correct = np.ones(count, bool)
  for times in RADII:
    radius = budget.epsilon * times
    scalars = {'epsilon': np.float32(radius)}
    correct &= program(network, scalars, rows)
    curve['epsilon'].append(radius)
    curve['correct'].append(int(correct.sum()))
    curve['total'].append(count)
    progress.say(f'epsilon {radius:.4f}: {100 * correct.mean():.1f} %')
  write_json(path, {'identity': identity, 'curve': curve})
  return curve


def _on_devices(model: Any) -> Partial:
  weights = parallel.replicate(model.variables, jax.local_devices())
  return Partial(model.as_partial().func, weights)


def _correct(norm: str, shared: tuple, rows: dict[str, Array]) -> Array:
  """Returns [n] bool: correct at the end of PGD in the given ball."""
  apply, scalars = shared
  epsilon = scalars['epsilon']
  keys = image_keys(jax.random.key(0), rows['row'])

  def loss_fn(x: Array) -> Array:
    logits = apply(x)
    return cross_entropy(logits, jax.nn.one_hot(rows['label'], logits.shape[1]))

  adv = ascent(
    keys, loss_fn, rows['image'],
    norm=norm, epsilon=epsilon, step_size=epsilon / 4, num_steps=CURVE_STEPS,
    init='uniform',
  ).adv  # fmt: skip
  return margin(apply(adv), rows['label']) < 0


def _read_curve(path: Path) -> dict[str, Any]:
  try:
    content = read_json(path)
  except UserError:
    return {}  # missing or damaged: measured
  return content if isinstance(content, dict) else {}
