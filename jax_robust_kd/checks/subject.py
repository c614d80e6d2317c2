"""What is checked: any function from images to logits, and some images."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.core import PyTree


class Subject(NamedTuple):
  """A model and the images on which it is checked.

  Attributes:
    apply: [B, H, W, C] -> logits [B, K], with its weights as a pytree.
    image: [N, H, W, C] float32 in [0, 1].
    label: [N] int32.
    place: [N] int32, places in the data set, for their keys.
    batch_size: of every call.
  """

  apply: Partial
  image: np.ndarray
  label: np.ndarray
  place: np.ndarray
  batch_size: int


class Attacked(NamedTuple):
  """What an attack left of the images.

  Attributes:
    correct: [N] bool, classified correctly without and under the attack; False
      also for images that it was not run on, as others had broken them.
    adv: [N, H, W, C], or None if it was not kept.
  """

  correct: np.ndarray
  adv: np.ndarray | None


def has_image(attacked: Attacked) -> np.ndarray:
  """Which rows of `adv` are an image, [N]: those left out are all NaN."""
  if attacked.adv is None:
    return np.zeros(len(attacked.correct), bool)
  nothing = np.all(np.isnan(attacked.adv), axis=(1, 2, 3))
  return attacked.correct | ~nothing


def in_batches(function: Callable, batch_size: int, *arrays) -> PyTree:
  """Calls a function on batches of one size and joins the results on the host.

  Args:
    function: (array [batch_size, ...], ...) -> pytree of [batch_size, ...].
    batch_size: the last batch is filled up with the first row.
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
  subject: Subject, image: np.ndarray, batch_size: int = 0
) -> np.ndarray:
  """Returns the logits [N, K] of images [N, H, W, C].

  Args:
    subject: whose model is called.
    image: float32 in [0, 1].
    batch_size: another than the subject's.
  """
  return in_batches(
    lambda x: _logits(subject.apply, x),
    batch_size or subject.batch_size,
    image,
  )


def margins(logit: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Largest wrong logit minus the right one, [N], on the host."""
  rows = np.arange(len(label))
  wrong = np.array(logit, np.float32)
  right = wrong[rows, label].copy()
  wrong[rows, label] = -np.inf
  return wrong.max(axis=1) - right
