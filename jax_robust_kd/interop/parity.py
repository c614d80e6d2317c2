"""What an export is worth: the artefact against the network, run by its own
runtime on real images."""

from collections.abc import Callable
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import LogitsFn

LARGEST_LOSS = 0.5  # points of accuracy above which an export is warned about


def compare(
  run: Callable[[np.ndarray], np.ndarray],
  reference: Callable[[np.ndarray], np.ndarray],
  image: np.ndarray,
  label: np.ndarray,
  attacked: dict[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
  """Returns how far an artefact is from the network it was made of.

  Args:
    run: images [N, H, W, C] float32 in [0, 1] -> logits, by the artefact.
    reference: the same, by the network.
    image: [N, H, W, C] float32 in [0, 1].
    label: [N] integers.
    attacked: attack -> ([n] rows, [n, H, W, C] images that it left). They were
      made for the network: on the artefact they are a transfer attack, and the
      accuracy an upper bound.

  Returns:
    'relative_error' (of the largest logit), 'flips' of the predicted class,
    accuracies in percent and 'latency_ms' of one image.
  """
  ours, theirs = np.asarray(reference(image)), np.asarray(run(image))
  found: dict[str, Any] = {
    'num_images': len(image),
    'relative_error': float(np.abs(ours - theirs).max() / np.abs(ours).max()),
    'flips': int((ours.argmax(1) != theirs.argmax(1)).sum()),
    'clean': _percent(theirs, label),
    'clean_reference': _percent(ours, label),
    'stored_attacks': {},
    'latency_ms': latency(run, image[:1]),
  }
  for name, (rows, adv) in attacked.items():
    right = [logits.argmax(1) == label for logits in (theirs, ours)]
    for flags, ask in zip(right, (run, reference), strict=True):
      flags[rows] &= np.asarray(ask(adv)).argmax(1) == label[rows]
    found['stored_attacks'][name] = {
      'upper_bound': 100 * float(right[0].mean()),
      'reference': 100 * float(right[1].mean()),
    }
  found['loses'] = max(
    found['clean_reference'] - found['clean'],
    *(
      x['reference'] - x['upper_bound']
      for x in found['stored_attacks'].values()
    ),
    0.0,
  )
  return found


def _percent(logits: np.ndarray, label: np.ndarray) -> float:
  return 100 * float((logits.argmax(axis=1) == label).mean())


def latency(
  run: Callable[[np.ndarray], np.ndarray], image: np.ndarray, times: int = 20
) -> float:
  """Returns the median milliseconds of one image, after three calls."""
  seconds = []
  for number in range(times + 3):
    begin = time.perf_counter()
    run(image)
    if number >= 3:
      seconds.append(time.perf_counter() - begin)
  return 1000 * float(np.median(seconds))


def as_callback(
  run: Callable[[np.ndarray], np.ndarray], num_classes: int
) -> LogitsFn:
  """Returns an artefact as a function that attacks without gradients take."""

  def logits(image):
    shape = jax.ShapeDtypeStruct((len(image), num_classes), jnp.float32)
    return jax.pure_callback(lambda x: run(np.asarray(x)), shape, image)

  return logits
