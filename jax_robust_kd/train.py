"""The training loop: steps, log, validation, checkpoints, resume."""

from collections.abc import Callable
from functools import partial
import math
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_robust_kd import (
  build,
  checkpoint,
  console,
  data,
  evaluate,
  metrics,
  parallel,
  preview,
)
from jax_robust_kd.config import Config
from jax_robust_kd.core import RunError, TrainState
from jax_robust_kd.train_step import train_step

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


def train(c: Config, workdir: Path, label: str, dataset: data.Dataset) -> None:
  """Trains, or goes on with, the run of a config in a workdir.

  Raises:
    UserError: a mistake in the config, found before anything is compiled.
    RunError: the loss is not finite, or a checkpoint cannot be written.
  """
  networks = build.make_networks(c, dataset)
  per_epoch = data.num_batches(len(dataset.train.label), c.data.batch_size)
  recipe, schedule = build.make_recipe(c, networks, dataset, per_epoch)
  state = build.make_state(c, recipe, networks, dataset)
  last = checkpoint.open_folder(workdir, 'last', c.save.keep)
  best = checkpoint.open_folder(workdir, 'best', 1)
  run = Training(
    label=label,
    workdir=workdir,
    step=parallel.pmap_step(partial(train_step, recipe)),
    teacher_variables=parallel.replicate(
      {name: t.variables for name, t in networks.teachers.items()}
    ),
    batches=_make_batches(c, dataset),
    validate=_make_validate(c, networks.student.forward, dataset),
    schedule=schedule,
    describe=lambda: preview.describe(c, dataset, recipe, state, networks),
    last=last,
    best=best,
    record={
      'num_classes': dataset.num_classes,
      'normalization': {'mean': dataset.mean, 'std': dataset.std},
      'chosen_by': f'{c.eval.attack} on {len(dataset.val.label)} '
      'held-out training images',
    },
    total_steps=recipe.total_steps,
    steps_per_epoch=per_epoch,
    log_every=c.log_every,
    save_every=c.save.every_steps,
    eval_every=c.eval.every_epochs * per_epoch,
    batch_size=c.data.batch_size,
  )
  try:
    _run(run, state)
  finally:
    last.close()
    best.close()


def _make_batches(c: Config, dataset: data.Dataset) -> Callable:
  batches = partial(
    data.train_batches,
    dataset.train,
    batch_size=c.data.batch_size,
    seed=c.seed,
    extra=dataset.extra if c.data.extra.file else None,  # not the teacher's
    **parallel.place(),
  )
  return lambda start: parallel.prefetch(batches(start_step=start))


def _make_validate(
  c: Config, forward: Callable, dataset: data.Dataset
) -> Callable:
  """Builds state -> clean and robust accuracy on the validation images."""
  budget = build.make_budget(c)
  clean, attack = (
    evaluate.make_attack(forward, spec, budget, c.seed, c.eval.batch_size)
    for spec in ('clean', c.eval.attack)
  )

  def run(state: TrainState) -> dict[str, float]:
    variables = {
      'params': state.ema_params or state.params['student'],
      'batch_stats': state.ema_stats or state.batch_stats,
    }
    right = clean(variables, dataset.val).margin < 0
    robust = attack(variables, dataset.val).margin < 0
    return {
      'val_clean': float(right.mean()),
      'val_robust': float((right & robust).mean()),
    }

  return run


def _run(run: Training, state: TrainState) -> None:
  """Steps from the newest checkpoint to the end."""
  found = checkpoint.restore(run.last, state)
  best = {'val_robust': -1.0, 'val_clean': -1.0}
  if found is not None:
    state, record = found
    best = record['best']
    console.say(f'{run.label}: going on from step {int(state.step)}')
  start = int(state.step)
  if start == run.total_steps:
    return
  log = run.workdir / 'metrics.jsonl'
  metrics.truncate(log, start)
  if start == 0:
    for line in run.describe():
      console.say(line)
  log_to_board = metrics.tensorboard(run.workdir / 'tensorboard')
  state, pending = parallel.replicate(state), []
  clock = _start_clock(run, start)
  with console.progress(run.label, start, run.total_steps) as show:
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
        # In this order: what a checkpoint's record tells must be on disk
        # before it, whenever the run is killed.
        metrics.append(log, line)
        if saved:
          checkpoint.wait(run.best)
          _save(run, run.last, done, state, {'best': best})
        log_to_board(line)
        show(done, _text(line, best, clock(done)))
  checkpoint.wait(run.best)
  checkpoint.wait(run.last)


def _flush(run: Training, done: int, pending: list[dict]) -> dict:
  """Averages the metrics since the last line; stops on NaN or infinity."""
  values = [{k: float(v) for k, v in p.items()} for p in pending]
  for step, value in enumerate(values, done - len(values) + 1):
    for name in ('loss', 'grad_norm'):
      if not math.isfinite(value[name]):
        raise _diverged(run, f'the {name} is {value[name]} at step {step}')
  line = {'step': done, 'epoch': done / run.steps_per_epoch}
  line |= {k: float(np.mean([v[k] for v in values])) for k in values[0]}
  return line | {'learning_rate': float(run.schedule(done - 1))}


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
  best = {'step': done, **{k: line[k] for k in order}}
  _save(run, run.best, done, state, {'best': best})
  return best


def _save(run: Training, folder, done: int, state, record: dict) -> None:
  host = jax.tree.map(np.copy, parallel.to_host(state))
  checkpoint.save(folder, done, host, {**run.record, **record})


def _start_clock(run: Training, start: int) -> Callable[[int], float]:
  """Returns done -> images/s since the call before."""
  previous = [start, time.monotonic()]

  def rate(done: int) -> float:
    now = time.monotonic()
    images = (done - previous[0]) * run.batch_size
    speed = images / max(now - previous[1], 1e-9)
    previous[:] = done, now
    record = {'step': done, 'images_per_second': speed}
    metrics.append(run.workdir / 'speed.jsonl', record)
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
