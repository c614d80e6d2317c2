"""A training run, top to bottom: config, build, step on devices, loop, save."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from jax_robust_kd import data
from jax_robust_kd.config import Config
from jax_robust_kd.core import Forward, Preempted, TrainState
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.networks import describe_data
from jax_robust_kd.runtime import files, parallel, processes
from jax_robust_kd.threat import make_budget
from jax_robust_kd.training import build, summary
from jax_robust_kd.training.keep import Keeper
from jax_robust_kd.training.log import Log, mean
from jax_robust_kd.training.step import train_step
from jax_robust_kd.workdir import claim_workdir


def train(c: Config, workdir: Path, label: str, dataset: data.Dataset) -> None:
  """Trains, or goes on with, the run of a config in a workdir.

  Raises:
    UserError: a mistake in the config, found before anything is compiled.
    RunError: the loss is not finite, or a checkpoint cannot be written.
    Preempted: SIGTERM came; a checkpoint is on disk.
  """
  networks = build.make_networks(c, dataset)
  claim_workdir(workdir, c)  # now that all has been read
  epoch = data.num_batches(len(dataset.train.label), c.data.batch_size)
  recipe, schedule = build.make_recipe(c, networks, dataset, epoch)
  state = build.make_state(c, recipe, networks, dataset)
  total = recipe.total_steps
  with closing(_open_keeper(c, workdir, label, dataset)) as keeper:
    state, pending = keeper.restore(state)  # the metrics since the last line
    start = int(state.step)
    if start == total:
      return
    files.truncate(workdir / 'metrics.jsonl', start)
    if start == 0:
      summary.show(c, dataset, recipe, state, networks)
    step = parallel.pmap_step(partial(train_step, recipe))
    weights = {name: t.variables for name, t in networks.teachers.items()}
    teachers = parallel.replicate(weights)
    validate = _make_validate(c, networks.student.forward, dataset)
    batches = _batches(c, dataset, start)
    log = Log(workdir, start, total, c.data.batch_size)
    with log.progress(label) as show, processes.preemption() as asked:
      state = parallel.replicate(state)
      for done in range(start + 1, total + 1):
        state, metrics = step(state, teachers, next(batches))
        pending.append(metrics)
        log.estimate(done, metrics)
        end = done == total
        validates = end or done % (c.validation.every_epochs * epoch) == 0
        saves = end or done % c.save.every_steps == 0
        if validates or saves or done % c.log_every == 0:
          means = mean(keeper.check_metrics(done, pending))
          pending = []
          line = {'step': done, 'epoch': done / epoch, **means}
          line['learning_rate'] = float(schedule(done - 1))
          if validates or saves:
            keeper.check_weights(done, state)
          if validates:
            line |= validate(state)
            keeper.save_best(done, state, line)
          # In this order: what a checkpoint's record tells must be on disk
          # before it, whenever the run is killed.
          log.write(line)
          if saves:
            keeper.save_last(done, state)
          show(line, keeper.best)
        if asked(done) and not end:
          _leave(keeper, done, state, pending, saves)
    keeper.wait()
    processes.barrier('trained')


def _open_keeper(
  c: Config, workdir: Path, label: str, dataset: data.Dataset
) -> Keeper:
  """Opens the checkpoints, with what an evaluation needs beside each."""
  record = {
    **describe_data(dataset),
    'chosen_by': f'{c.validation.attack} on {len(dataset.val.label)} '
    'held-out training images',
  }
  go_on = c.save.on_failure == 'go_on'
  return Keeper(workdir, label, c.save.keep, go_on=go_on, record=record)


def _batches(c: Config, dataset: data.Dataset, start: int) -> Iterator[dict]:
  """Returns the batches from a step on, ahead of their step on the devices."""
  return parallel.prefetch(
    data.train_batches(
      dataset.train,
      batch_size=c.data.batch_size,
      seed=c.seed,
      start_step=start,
      extra=dataset.extra if c.data.extra.file else None,  # not the teacher's
      **parallel.place(),
    )
  )


def _leave(
  keeper: Keeper, step: int, state: TrainState, pending: list, saved: bool
) -> None:
  """Saves and ends; the metrics of the unfinished line go along.

  Raises:
    Preempted: the state is on disk.
  """
  if not saved:
    values = keeper.check_metrics(step, pending)
    keeper.check_weights(step, state)
    keeper.save_last(step, state, pending=values)
  keeper.wait()
  processes.barrier('left')
  raise Preempted(
    f'asked to end by SIGTERM; step {step} is saved, the same command goes on '
    'from there'
  )


def _make_validate(
  c: Config, forward: Forward, dataset: data.Dataset
) -> Callable[[TrainState], dict[str, float]]:
  """Builds state -> clean and robust accuracy on the validation images."""
  budget = make_budget(c)
  clean, attack = (
    evaluate.make_split_attack(forward, spec, budget, c.seed, c.eval.batch_size)
    for spec in ('clean', c.validation.attack)
  )
  rows = np.arange(len(dataset.val.label))[processes.process_slice()]

  def validate(state: TrainState) -> dict[str, float]:
    variables = parallel.to_host(
      {
        'params': state.ema_params or state.params['student'],
        'batch_stats': state.ema_stats or state.batch_stats,
      }
    )
    right = clean(variables, dataset.val, rows).margin < 0
    robust = attack(variables, dataset.val, rows).margin < 0
    counts = np.array([right.sum(), (right & robust).sum()])
    shares = processes.total(counts) / len(dataset.val.label)
    return {'val_clean': float(shares[0]), 'val_robust': float(shares[1])}

  return validate
