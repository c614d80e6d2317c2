"""What is checked: a function from images to logits, and some images."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.core import PyTree


class Model(NamedTuple):
  """A model and the images on which it is checked.

  Attributes:
    apply: [B, H, W, C] -> logits [B, K], with its weights as a pytree.
    image: [N, H, W, C] float32 in [0, 1].
    label: [N] int32.
    row: [N] int32, places in the data set; they decide the random keys.
    batch_size: of every call.
  """

  apply: Partial
  image: np.ndarray
  label: np.ndarray
  row: np.ndarray
  batch_size: int


class Outcome(NamedTuple):
  """Flags and adversarial images of one attack.

  Attributes:
    correct: [N] bool, classified correctly without and under the attack; False
      also for images that were not attacked, as others had broken them.
    adv: [N, H, W, C], or None if it was not kept.
  """

  correct: np.ndarray
  adv: np.ndarray | None


def has_image(outcome: Outcome) -> np.ndarray:
  """Returns which rows of `adv` are images, [N]; the others are all NaN."""
  if outcome.adv is None:
    return np.zeros(len(outcome.correct), bool)
  missing = np.all(np.isnan(outcome.adv), axis=(1, 2, 3))
  return outcome.correct | ~missing


def in_batches(function: Callable, batch_size: int, *arrays) -> PyTree:
  """Calls a function on batches of one size and joins the results on the host.

  Args:
    function: (array [batch_size, ...], ...) -> pytree of [batch_size, ...].
    batch_size: the last batch is padded with the first row.
    *arrays: [N, ...] each.

  Returns:
    The pytree with [N, ...] NumPy arrays.
  """
  total = len(arrays[0])
  parts = []
  for first in range(0, total, batch_size):
    rows = np.arange(first, first + batch_size)
    real = rows < total
    rows[~real] = 0
    part = function(*(array[rows] for array in arrays))
    parts.append(jax.tree.map(lambda x: np.asarray(x)[real], part))
  return jax.tree.map(lambda *each: np.concatenate(each), *parts)


# The weights are an argument: constants of that size are slow to compile.
@jax.jit
def _logits(apply, image):
  return apply(image)


def logits(
  model: Model, image: np.ndarray | None = None, batch_size: int = 0
) -> np.ndarray:
  """Returns logits [N, K].

  Args:
    model: what is called.
    image: [N, H, W, C] float32 in [0, 1]; None is the model's own images.
    batch_size: 0 is the model's own.
  """
  return in_batches(
    lambda x: _logits(model.apply, x),
    batch_size or model.batch_size,
    model.image if image is None else image,
  )


def margins(logit: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns the largest wrong logit minus the right one, [N]."""
  rows = np.arange(len(label))
  wrong = np.array(logit, np.float32)
  right = wrong[rows, label].copy()
  wrong[rows, label] = -np.inf
  return wrong.max(axis=1) - right


def is_correct(model: Model, image: np.ndarray | None = None) -> np.ndarray:
  """Returns which images are classified correctly, [N] bool."""
  return margins(logits(model, image), model.label) < 0
