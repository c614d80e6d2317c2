"""Decodes images ahead of the step that needs them, in processes, by Grain.

Which rows a step needs is a function of the step (`batches.py`), so nothing
has to be remembered but the step: there is no iterator state to save.
"""

from collections.abc import Callable, Iterator
from functools import partial
import multiprocessing
import os
import signal
import threading
from typing import Any

import jax
import numpy as np

from jax_robust_kd.core import RunError, UserError
from jax_robust_kd.data.lazy import (
  SKIP,
  Lazy,
  Part,
  decode_rows,
  report,
  stop_if_damaged,
)

_AHEAD = 2  # batches that each worker keeps ready
_FOREVER = 2**62  # steps
_TRIES = 100  # images tried in place of a damaged one


def read_ahead(
  images: Lazy,
  rows_of: Callable[[int], np.ndarray],
  start: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the images and labels of step after step, decoded ahead of need.

  Args:
    images: of a lazy split.
    rows_of: step -> [n] rows of `images`. It and `images` are pickled.
    start: first step.

  Raises:
    UserError: an image is damaged or does not fit the set.
    RunError: a worker process died.
  """
  grain = _import_grain()
  workers = images.stream.reading.workers
  steps = grain.MapDataset.range(start, _FOREVER)
  parts = steps.map(partial(_part, images, rows_of))
  threads, ready = (0, 0) if workers else (1, _AHEAD)
  ahead: Any = parts.to_iter_dataset(grain.ReadOptions(threads, ready))
  if workers:
    ahead = ahead.mp_prefetch(
      grain.MultiprocessingOptions(workers, _AHEAD), _prepare_worker
    )
  iterator = iter(ahead)
  said: set[str] = set()
  try:
    for part in iterator:
      report(problem for problem in part['damaged'] if problem not in said)
      said.update(part['damaged'])
      # Copies, since the worker's shared memory ends with its array.
      yield np.array(part['image']), np.array(part['label'])
  except (RuntimeError, OSError, EOFError) as error:
    raise RunError(_worker_died(error)) from error
  finally:
    iterator.close()


def _import_grain() -> Any:
  try:
    from absl import flags
    import grain
  except ImportError:
    raise UserError(
      'a set larger than data.memory_gb is streamed by Grain; run: pip install '
      'grain, or raise data.memory_gb'
    ) from None
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its own, which we do not offer
  return grain


def _worker_died(error: BaseException) -> str:
  reason = str(error).strip().split('\n')[0][:200] or type(error).__name__
  return (
    f'a process that decodes images failed ({reason}); often memory or '
    '/dev/shm is full: try fewer data.workers. The same command goes on from '
    'the last checkpoint'
  )


def _prepare_worker(index: int, count: int) -> None:
  """Lets a worker end with the process that started it, and not before."""
  del index, count
  jax.config.update('jax_platforms', 'cpu')  # accelerators are not for it
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
  parent = multiprocessing.parent_process()

  def follow():
    if parent is not None:
      parent.join()
      os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _part(images: Lazy, rows_of: Callable, step: int) -> dict:
  """Reads what one step needs; runs in a worker."""
  stream, rows = images.stream, rows_of(step)
  part = decode_rows(stream, images.rows[rows])
  if stream.reading.damaged == 'stop':
    stop_if_damaged(part, SKIP)
  for place, problem in part.damaged.items():
    _substitute(images, part, place, rows[place], problem)
  return {
    'image': part.image,
    'label': part.label,
    'damaged': list(part.damaged.values()),
  }


def _substitute(
  images: Lazy, part: Part, place: int, row: int, problem: str
) -> None:
  """Puts the next good image of the set in the place of a damaged one."""
  for other in range(row + 1, row + 1 + _TRIES):
    one = images.rows[[other % len(images)]]
    found = decode_rows(images.stream, one)
    if not found.damaged:
      part.image[place], part.label[place] = found.image[0], found.label[0]
      return
  raise UserError(f'{problem}, and so are the {_TRIES} images after it')
