"""A training run: everything it needs is built here, once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from jax_robust_kd import data
from jax_robust_kd.config import Config
from jax_robust_kd.core import TrainState
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.networks import describe_data
from jax_robust_kd.runtime import checkpoint, parallel, processes
from jax_robust_kd.threat import make_budget
from jax_robust_kd.training import build, loop, summary
from jax_robust_kd.training.step import train_step
from jax_robust_kd.workdir import claim_workdir


def train(c: Config, workdir: Path, label: str, dataset: data.Dataset) -> None:
  """Trains, or goes on with, the run of a config in a workdir.

  Raises:
    UserError: a mistake in the config, found before anything is compiled.
    RunError: the loss is not finite, or a checkpoint cannot be written.
  """
  networks = build.make_networks(c, dataset)
  claim_workdir(workdir, c)  # now that all has been read
  per_epoch = data.num_batches(len(dataset.train.label), c.data.batch_size)
  recipe, schedule = build.make_recipe(c, networks, dataset, per_epoch)
  state = build.make_state(c, recipe, networks, dataset)
  last = checkpoint.open_folder(workdir, 'last', c.save.keep)
  best = checkpoint.open_folder(workdir, 'best', 1)
  run = loop.Training(
    label=label,
    workdir=workdir,
    step=parallel.pmap_step(partial(train_step, recipe)),
    teacher_variables=parallel.replicate(
      {name: t.variables for name, t in networks.teachers.items()}
    ),
    batches=_make_batches(c, dataset),
    validate=_make_validate(c, networks.student.forward, dataset),
    schedule=schedule,
    describe=lambda: summary.describe(c, dataset, recipe, state, networks),
    last=last,
    best=best,
    record={
      **describe_data(dataset),
      'chosen_by': f'{c.validation.attack} on {len(dataset.val.label)} '
      'held-out training images',
    },
    total_steps=recipe.total_steps,
    steps_per_epoch=per_epoch,
    log_every=c.log_every,
    save_every=c.save.every_steps,
    eval_every=c.validation.every_epochs * per_epoch,
    batch_size=c.data.batch_size,
    survives_failed_save=c.save.on_failure == 'go_on',
  )
  try:
    loop.run_steps(run, state)
  finally:
    checkpoint.close(last)
    checkpoint.close(best)


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
  budget = make_budget(c)
  clean, attack = (
    evaluate.make_split_attack(forward, spec, budget, c.seed, c.eval.batch_size)
    for spec in ('clean', c.validation.attack)
  )

  rows = np.arange(len(dataset.val.label))
  rows = rows[processes.process_slice()]

  def run(state: TrainState) -> dict[str, float]:
    variables = {
      'params': state.ema_params or state.params['student'],
      'batch_stats': state.ema_stats or state.batch_stats,
    }
    variables = parallel.to_host(variables)
    right = clean(variables, dataset.val, rows).margin < 0
    robust = attack(variables, dataset.val, rows).margin < 0
    counts = [right.sum(), (right & robust).sum()]
    found = processes.total(np.array(counts)) / len(dataset.val.label)
    return {'val_clean': float(found[0]), 'val_robust': float(found[1])}

  return run
