"""A trained network that is called on images."""

from functools import partial
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd import networks
from jax_robust_kd.attacks.batching import make_program, make_runner
from jax_robust_kd.config import Config
from jax_robust_kd.core import Forward, PyTree, UserError
from jax_robust_kd.evaluation.evaluate import logits_of
from jax_robust_kd.runtime import parallel
from jax_robust_kd.workdir import read_config

_BATCH = 256  # images at once; fewer on a CPU


class Classifier(NamedTuple):
  """A trained network: images to logits, in float32.

  Attributes:
    apply: image [B, H, W, C] float32 in [0, 1] -> logits [B, K], to be traced.
    network: the network with its weights.
    class_names: [K].
    image_shape: (H, W, C) of the training images, () if it is not known.
    config: the settings it was trained with.
    card: the content of results.json, {} before the run is evaluated.
  """

  apply: Partial
  network: networks.Network
  class_names: tuple[str, ...]
  image_shape: tuple[int, ...]
  config: Config
  card: dict

  @property
  def variables(self) -> PyTree:
    """{'params', 'batch_stats'}."""
    return self.network.variables

  @property
  def forward(self) -> Forward:
    """(variables, image, mode) -> Output, with features."""
    return self.network.forward

  def as_partial(self) -> Partial:
    """Returns `apply`, whose weights are arguments of compiled programs."""
    return self.apply

  def __call__(self, images) -> np.ndarray:
    """Returns logits.

    Args:
      images: [N, H, W, C] or [H, W, C]; uint8, or float in [0, 1]. They are
        passed in batches of one size, so that one program is compiled.

    Returns:
      [N, K] or [K] float32.

    Raises:
      UserError: they have another shape, type or range.
    """
    rows = self._prepare(images)
    logits = np.zeros((0, len(self.class_names)), np.float32)
    if len(rows):
      weights = self.apply
      if parallel.num_devices() > 1:
        weights = parallel.replicate(weights, jax.local_devices())
      runner = make_runner(_BATCH, _BATCH, rows.shape[1:])
      logits = make_program('logits', partial(_call), runner)(weights, {}, rows)
    return logits if np.ndim(images) == 4 else logits[0]

  def predict(self, images) -> tuple[Any, np.ndarray]:
    """Returns the most probable classes, and the probabilities of all.

    Args:
      images: as of a call.

    Returns:
      A list of N names and [N, K], or a name and [K] of one image.
    """
    logits = self(images).astype(np.float64)
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponential / exponential.sum(axis=-1, keepdims=True)
    index = logits.argmax(axis=-1)
    if logits.ndim == 1:
      return self.class_names[index], probabilities
    return [self.class_names[i] for i in index], probabilities

  def _prepare(self, images) -> np.ndarray:
    images = np.asarray(images)
    shape = images.shape[-3:]
    expected = self.image_shape or shape
    if images.ndim not in (3, 4) or shape != expected:
      text = ', '.join(map(str, self.image_shape)) or 'H, W, C'
      raise UserError(
        f'images have shape {images.shape}; give [{text}] or [N, {text}]'
      )
    rows = images if images.ndim == 4 else images[None]
    if rows.dtype == np.uint8:
      return rows / np.float32(255)
    if not np.issubdtype(rows.dtype, np.floating):
      raise UserError(f'images are {rows.dtype}; give uint8 or float')
    if rows.size and not (rows.min() >= 0 and rows.max() <= 1):  # NaN too
      raise UserError(
        f'images range over [{rows.min():g}, {rows.max():g}]; floats must be '
        'in [0, 1], and uint8 from 0 to 255'
      )
    return rows.astype(np.float32)


def load(workdir: str | Path, checkpoint: str = 'best') -> Classifier:
  """Loads the network that a run trained; the training images are not needed.

  Args:
    workdir: of the run.
    checkpoint: 'best' on validation images, or 'last'.

  Raises:
    UserError: there is no such run or checkpoint, or it cannot be read.
  """
  if checkpoint not in ('best', 'last'):
    raise UserError(f"checkpoint={checkpoint!r} is unknown; use 'best', 'last'")
  folder = Path(workdir).expanduser()
  network, record = networks.read_network(str(folder), checkpoint)
  # Runs of the first version have no names; theirs are numbers.
  names = record.get('class_names') or map(str, range(network.num_classes))
  forward = networks.in_precision(network, 'float32')
  return Classifier(
    Partial(logits_of(forward), network.variables),
    network,
    tuple(names),
    tuple(record.get('image_shape') or ()),
    read_config(folder),
    _read_card(folder / 'results.json'),
  )


def _read_card(path: Path) -> dict:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def _call(shared: tuple, rows):
  return shared[0](rows)
