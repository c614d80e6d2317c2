"""What a run says of itself: lines of metrics, its speed, how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
import time

import jax
import numpy as np

from jax_robust_kd.runtime import console, files

_TIMED_STEPS = 6  # the first compiles, the others give the estimate


def mean(metrics: list[dict[str, float]]) -> dict[str, float]:
  """Averages the metrics of several steps."""
  return {k: float(np.mean([m[k] for m in metrics])) for k in metrics[0]}


class Log:
  """Writes metrics.jsonl, TensorBoard's file and speed.jsonl of a run."""

  def __init__(self, workdir: Path, start: int, total: int, batch_size: int):
    """Starts the clock.

    Args:
      workdir: of the run.
      start: steps already done.
      total: steps of the whole run.
      batch_size: images of a step, over all devices.
    """
    self._workdir, self._batch_size = workdir, batch_size
    self._start, self._total = start, total
    self._clock = start, time.monotonic()
    self._board = files.tensorboard(workdir / 'tensorboard')

  def write(self, line: dict) -> None:
    """Appends a line to metrics.jsonl."""
    files.append(self._workdir / 'metrics.jsonl', line)

  @contextmanager
  def progress(self, label: str) -> Iterator[Callable[[dict, dict], None]]:
    """Shows the run on the screen and in TensorBoard.

    Yields:
      (line, best) -> None: the newest metrics, accuracies of the best state.
    """
    with console.progress(label, self._start, self._total) as update:

      def show(line: dict, best: dict) -> None:
        self._board(line)
        rate = self._rate(line['step'])
        text = f'{rate:.0f} images/s  loss {line["loss"]:.3f}'
        if best['val_robust'] >= 0:
          text += (
            f'  best val clean {100 * best["val_clean"]:.1f} '
            f'robust {100 * best["val_robust"]:.1f}'
          )
        update(line['step'], text)

      yield show

  def estimate(self, step: int, metrics: dict) -> None:
    """Says how long the run will take, measured on its first steps."""
    steps = step - self._start
    if steps not in (1, _TIMED_STEPS):
      return
    jax.block_until_ready(metrics)  # the first step compiles: start after it
    speed = self._rate(step)
    if steps == _TIMED_STEPS:
      seconds = (self._total - step) * self._batch_size / speed
      console.say(
        f'time      {speed:.0f} images/s on the first steps: about '
        f'{console.duration(seconds)} to go, without validation'
      )

  def _rate(self, step: int) -> float:
    """Returns images/s since the call before, which it writes down."""
    before, since = self._clock
    now = time.monotonic()
    speed = (step - before) * self._batch_size / max(now - since, 1e-9)
    self._clock = step, now
    record = {'step': step, 'images_per_second': speed}
    files.append(self._workdir / 'speed.jsonl', record)
    return speed
