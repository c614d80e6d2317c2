"""The training loop: steps, log, validation, checkpoints, resume."""

from collections.abc import Callable
import math
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_robust_kd.core import Preempted, RunError, TrainState
from jax_robust_kd.runtime import (
  checkpoint,
  console,
  faults,
  files,
  parallel,
  processes,
)

_TIMED_STEPS = 6  # the first compiles, the others give the estimate


class Training(NamedTuple):
  """All that the loop needs, built once.

  Attributes:
    label: what to call the run on the screen.
    workdir: of the run.
    step: (state, teacher_variables, batch) -> (state, metrics), on devices.
    teacher_variables: frozen, on devices.
    batches: first step -> iterator of batches.
    validate: state -> {'val_clean', 'val_robust'}.
    schedule: step -> learning rate.
    describe: () -> lines to print before the first step.
    last: checkpoints to resume from.
    best: the checkpoint that validation chose.
    record: constants to store beside each checkpoint.
    total_steps: of the run.
    steps_per_epoch: full batches in the training images.
    log_every: steps.
    save_every: steps.
    eval_every: steps.
    batch_size: images of a step, over all devices.
    survives_failed_save: whether to go on when a checkpoint was not written.
  """

  label: str
  workdir: Path
  step: Callable
  teacher_variables: Any
  batches: Callable
  validate: Callable
  schedule: Callable
  describe: Callable
  last: Any
  best: Any
  record: dict
  total_steps: int
  steps_per_epoch: int
  log_every: int
  save_every: int
  eval_every: int
  batch_size: int
  survives_failed_save: bool


def run_steps(run: Training, state: TrainState) -> None:
  """Steps from the newest checkpoint to the end.

  Raises:
    RunError: the loss is not finite, or a checkpoint cannot be written.
    Preempted: SIGTERM came; a checkpoint is on disk.
  """
  found = checkpoint.restore(run.last, state)
  record: dict = {'best': {'val_robust': -1.0, 'val_clean': -1.0}}
  if found is not None:
    state, record = found
    console.say(f'{run.label}: going on from step {int(state.step)}')
  start = int(state.step)
  if start == run.total_steps:
    return
  files.truncate(run.workdir / 'metrics.jsonl', start)
  if start == 0:
    for line in run.describe():
      console.say(line)
    faults.point('described')
  # The metrics since the last line of the log, and the best checkpoint so far.
  pending, best = record.get('pending', []), record['best']
  with (
    console.progress(run.label, start, run.total_steps) as show,
    processes.preemption() as asked,
  ):
    _step(run, parallel.replicate(state), start, pending, best, show, asked)
  checkpoint.wait(run.best)
  checkpoint.wait(run.last)
  processes.barrier('trained')


def _step(
  run: Training,
  state: TrainState,
  start: int,
  pending: list,
  best: dict,
  show: Callable,
  asked: Callable[[int], bool],
) -> None:
  log, clock = run.workdir / 'metrics.jsonl', _start_clock(run, start)
  log_to_board = files.tensorboard(run.workdir / 'tensorboard')
  for done, batch in zip(
    range(start + 1, run.total_steps + 1), run.batches(start), strict=False
  ):
    state, values = run.step(state, run.teacher_variables, batch)
    pending.append(values)
    _estimate(run, clock, done, done - start, values)
    end = done == run.total_steps
    checked = end or done % run.eval_every == 0
    saved = end or done % run.save_every == 0
    if done % run.log_every == 0 or checked or saved:
      line = _flush(run, done, pending)
      pending = []
      if checked or saved:
        _check_finite(run, done, state)
      if checked:
        line |= run.validate(state)
        best = _keep_best(run, done, state, line, best)
      # In this order: what a checkpoint's record tells must be on disk before
      # it, whenever the run is killed.
      files.append(log, line)
      if saved:
        _save(run, run.last, done, state, {'best': best})
      log_to_board(line)
      show(done, _text(line, best, clock(done)))
    if asked(done) and not end:
      _leave(run, done, state, pending, best, saved)


def _leave(
  run: Training, done: int, state, pending: list, best: dict, saved: bool
) -> None:
  """Saves and ends; the metrics of the unfinished line go along."""
  if not saved:
    values = _finite(run, done, pending)
    _check_finite(run, done, state)
    _save(run, run.last, done, state, {'best': best, 'pending': values})
  checkpoint.wait(run.best)
  checkpoint.wait(run.last)
  processes.barrier('left')
  raise Preempted(
    f'asked to end by SIGTERM; step {done} is saved, the same command goes on '
    'from there'
  )


def _flush(run: Training, done: int, pending: list[dict]) -> dict:
  """Averages the metrics since the last line; stops on NaN or infinity."""
  values = _finite(run, done, pending)
  line = {'step': done, 'epoch': done / run.steps_per_epoch}
  line |= {k: float(np.mean([v[k] for v in values])) for k in values[0]}
  return line | {'learning_rate': float(run.schedule(done - 1))}


def _finite(run: Training, done: int, pending: list[dict]) -> list[dict]:
  """Returns the metrics of the last steps as numbers."""
  values = [{k: float(v) for k, v in p.items()} for p in pending]
  for step, value in enumerate(values, done - len(values) + 1):
    for name in ('loss', 'grad_norm'):
      if not math.isfinite(value[name]):
        raise _diverged(run, f'the {name} is {value[name]} at step {step}')
  return values


def _check_finite(run: Training, done: int, state: TrainState) -> None:
  """Stops before a state is saved that the finite loss did not give away."""
  leaves = jax.tree.leaves(parallel.to_host(state))
  if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
    raise _diverged(run, f'the weights are not finite after step {done}')


def _diverged(run: Training, what: str) -> RunError:
  checkpoint.wait(run.last)
  last = run.last.latest_step()
  kept = 'there is no checkpoint yet'
  if last is not None:
    kept = f'the last good checkpoint is step {last} in {run.last.directory}'
  return RunError(
    f'{what}; {kept}. A smaller optimizer.learning_rate or '
    'optimizer.clip_norm=1 often helps'
  )


def _keep_best(
  run: Training, done: int, state: TrainState, line: dict, best: dict
) -> dict:
  """Saves the state if it is the most robust so far, then the most accurate."""
  order = ('val_robust', 'val_clean')
  if [line[k] for k in order] <= [best[k] for k in order]:
    return best
  better = {'step': done, **{k: line[k] for k in order}}
  saved = _save(run, run.best, done, state, {'best': better})
  if run.survives_failed_save:
    saved = saved and _wait(run, run.best)
  return better if saved else best


def _save(run: Training, folder, done: int, state, record: dict) -> bool:
  """Starts to save; returns whether nothing has failed yet."""
  # One at a time: `last` never tells of a `best` that is not on disk, and two
  # saves of several processes would meet at one and the same barrier of Orbax.
  for other in (run.best, run.last):
    _wait(run, other)
  host = jax.tree.map(np.copy, parallel.to_host(state))
  return _try(
    run,
    lambda: checkpoint.save(folder, done, host, {**run.record, **record}),
  )


def _wait(run: Training, folder) -> bool:
  return _try(run, lambda: checkpoint.wait(folder))


def _try(run: Training, action: Callable[[], None]) -> bool:
  """Returns whether it went well; what it raises is said where that is asked.

  Raises:
    RunError: a checkpoint cannot be written, and `save.on_failure` is 'stop'.
  """
  try:
    action()
  except RunError as error:
    if not run.survives_failed_save:
      raise
    console.say(f'{run.label}: {error}; going on without it')
    return False
  return True


def _start_clock(run: Training, start: int) -> Callable[[int], float]:
  """Returns done -> images/s since the call before."""
  previous = [start, time.monotonic()]

  def rate(done: int) -> float:
    now = time.monotonic()
    images = (done - previous[0]) * run.batch_size
    speed = images / max(now - previous[1], 1e-9)
    previous[:] = done, now
    record = {'step': done, 'images_per_second': speed}
    files.append(run.workdir / 'speed.jsonl', record)
    return speed

  return rate


def _estimate(
  run: Training, clock: Callable, done: int, steps_done: int, values: dict
) -> None:
  """Says how long the run will take, measured on its first steps."""
  if steps_done not in (1, _TIMED_STEPS):
    return
  jax.block_until_ready(values)  # the first step compiles: start after it
  speed = clock(done)
  if steps_done == _TIMED_STEPS:
    seconds = (run.total_steps - done) * run.batch_size / speed
    console.say(
      f'time      {speed:.0f} images/s on the first steps: about '
      f'{console.duration(seconds)} to go, without validation'
    )


def _text(line: dict, best: dict, rate: float) -> str:
  """What stands beside the progress bar."""
  text = f'{rate:.0f} images/s  loss {line["loss"]:.3f}'
  if best['val_robust'] >= 0:
    text += (
      f'  best val clean {100 * best["val_clean"]:.1f} '
      f'robust {100 * best["val_robust"]:.1f}'
    )
  return text
