"""What is about to run and what it costs, before the first step."""

from functools import partial

import jax

from jax_robust_kd import data, models
from jax_robust_kd.config import Config, teacher_group
from jax_robust_kd.core import TrainState
from jax_robust_kd.networks import Network
from jax_robust_kd.planning.flops import step_cost
from jax_robust_kd.runtime import console, faults
from jax_robust_kd.runtime.imports import short
from jax_robust_kd.training import build
from jax_robust_kd.training.step import Recipe, train_step


def show(
  c: Config,
  dataset: data.Dataset,
  recipe: Recipe,
  state: TrainState,
  networks: build.Networks,
) -> None:
  """Says what is about to run and what a step costs."""
  devices = jax.devices()
  lines = [
    f'devices   {jax.process_count()} process(es) x '
    f'{jax.local_device_count()} x {devices[0].device_kind}'
  ]
  for name, teacher in networks.teachers.items():
    _, given = teacher_group(c, name)
    source = given.checkpoint or given.function
    lines.append(f'teacher   {_size(teacher)}, {name}, from {source}')
  shape = dataset.train.image.shape[1:]
  passes, flops = step_cost(
    partial(train_step, recipe),
    state,
    {name: t.variables for name, t in networks.teachers.items()},
    networks.student.forward,
    (c.data.batch_size, *shape),
  )
  epochs, steps = c.optimizer.epochs, recipe.total_steps
  if networks.peer is not None:
    lines.append(f'peer      {_size(networks.peer)}')
  lines += [
    f'student   {_size(networks.student)}',
    f'method    {short(c.method.name)}: a step of {c.data.batch_size} images '
    f'costs {flops / 1e9:.3g} GFLOP, as much as {passes:.1f} forward passes of '
    'the student',
    f'data      {dataset.name}: {len(dataset.train.label)} training, '
    f'{len(dataset.val.label)} validation, {len(dataset.test.label)} test '
    'images',
    f'run       {epochs} epochs = {steps} steps',
  ]
  for line in lines:
    console.say(line)
  faults.point('described')


def _size(network: Network) -> str:
  count = models.num_params(network.variables['params'])
  return f'{network.name}, {count:,} parameters'
