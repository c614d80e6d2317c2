"""The checkpoints of a run: `last` to go on from, `best` on validation."""

from collections.abc import Callable
import math
from pathlib import Path

import jax
import numpy as np

from jax_robust_kd.core import RunError, TrainState
from jax_robust_kd.runtime import checkpoint, console, parallel

_ORDER = ('val_robust', 'val_clean')  # what is best: the first, then the second


class Keeper:
  """Keeps states that are finite, in the two folders of a run.

  Attributes:
    best: step and validation accuracies of the state in `best`.
  """

  def __init__(
    self, workdir: Path, label: str, keep: int, *, go_on: bool, record: dict
  ):
    """Opens the folders.

    Args:
      workdir: of the run.
      label: name of the run in messages.
      keep: newest steps that stay in `last`.
      go_on: whether the run goes on when a checkpoint cannot be written.
      record: constants to store beside each checkpoint.
    """
    self.best: dict = {'val_robust': -1.0, 'val_clean': -1.0}
    self._label, self._go_on, self._record = label, go_on, record
    self._last = checkpoint.open_folder(workdir, 'last', keep)
    self._best = checkpoint.open_folder(workdir, 'best', 1)

  def restore(self, state: TrainState) -> tuple[TrainState, list[dict]]:
    """Returns the newest state, and the metrics that were not logged yet."""
    found = checkpoint.restore(self._last, state)
    if found is None:
      return state, []
    state, record = found
    console.say(f'{self._label}: going on from step {int(state.step)}')
    self.best = record['best']
    return state, record.get('pending', [])

  def save_last(self, step: int, state: TrainState, **record) -> None:
    """Starts to save the state to go on from, with what else to record."""
    self._save(self._last, step, state, {'best': self.best, **record})

  def save_best(self, step: int, state: TrainState, accuracy: dict) -> None:
    """Saves the state if it is the most robust so far, then most accurate."""
    if [accuracy[k] for k in _ORDER] <= [self.best[k] for k in _ORDER]:
      return
    better = {'step': step, **{k: accuracy[k] for k in _ORDER}}
    saved = self._save(self._best, step, state, {'best': better})
    if self._go_on:
      saved = saved and self._try(checkpoint.wait, self._best)
    if saved:
      self.best = better

  def wait(self) -> None:
    """Waits until all is on disk.

    Raises:
      RunError: a checkpoint could not be written.
    """
    checkpoint.wait(self._best)
    checkpoint.wait(self._last)

  def close(self) -> None:
    """Closes the folders."""
    checkpoint.close(self._last)
    checkpoint.close(self._best)

  def check_metrics(self, step: int, metrics: list[dict]) -> list[dict]:
    """Returns the metrics of the steps up to `step` as finite numbers.

    Raises:
      RunError: a loss or a gradient is not finite.
    """
    values = [{k: float(v) for k, v in m.items()} for m in metrics]
    for number, value in enumerate(values, step - len(values) + 1):
      for name in ('loss', 'grad_norm'):
        if not math.isfinite(value[name]):
          self._stop(f'the {name} is {value[name]} at step {number}')
    return values

  def check_weights(self, step: int, state: TrainState) -> None:
    """Checks a state that the finite loss of its step did not give away.

    Raises:
      RunError: a number in it is not finite.
    """
    leaves = jax.tree.leaves(parallel.to_host(state))
    if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
      self._stop(f'the weights are not finite after step {step}')

  def _stop(self, reason: str) -> None:
    checkpoint.wait(self._last)
    last = self._last.latest_step()
    kept = 'there is no checkpoint yet'
    if last is not None:
      kept = (
        f'the last good checkpoint is step {last} in {self._last.directory}'
      )
    raise RunError(
      f'{reason}; {kept}. A smaller optimizer.learning_rate or '
      'optimizer.clip_norm=1 often helps'
    )

  def _save(self, folder, step: int, state: TrainState, record: dict) -> bool:
    """Starts to save; returns whether nothing has failed yet."""
    # One at a time: `last` never tells of a `best` that is not on disk, and
    # two saves of several processes would meet at one barrier of Orbax.
    for other in (self._best, self._last):
      self._try(checkpoint.wait, other)
    host = jax.tree.map(np.copy, parallel.to_host(state))
    record = {**self._record, **record}
    return self._try(checkpoint.save, folder, step, host, record)

  def _try(self, action: Callable[..., None], *arguments) -> bool:
    """Returns whether it went well; a failure is printed if the run goes on."""
    try:
      action(*arguments)
    except RunError as error:
      if not self._go_on:
        raise
      console.say(f'{self._label}: {error}; going on without it')
      return False
    return True
