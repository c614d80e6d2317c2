"""What is about to run and what it costs, before the first step."""

from functools import partial

import jax

from jax_robust_kd import cost, data, models, networks
from jax_robust_kd.config import Config
from jax_robust_kd.core import TrainState
from jax_robust_kd.train_step import Recipe, train_step


def describe(
  c: Config,
  dataset: data.Dataset,
  recipe: Recipe,
  state: TrainState,
  student: networks.Network,
  teacher: networks.Network | None,
) -> list[str]:
  """Returns what is about to run and what a step costs."""
  devices = jax.devices()
  lines = [
    f'devices   {len(devices)} x {devices[0].device_kind}, '
    f'{jax.process_count()} process(es)'
  ]
  if teacher is not None:
    lines.append(f'teacher   {_size(teacher)}, from {c.teacher.checkpoint}')
  shape = dataset.train.image.shape[1:]
  passes, flops = cost.step_cost(
    partial(train_step, recipe),
    state,
    teacher.variables if teacher else {},
    student.forward,
    (c.data.batch_size, *shape),
  )
  epochs, steps = c.optimizer.epochs, recipe.total_steps
  return lines + [
    f'student   {_size(student)}',
    f'method    {c.method.name}: a step of {c.data.batch_size} images costs '
    f'{flops / 1e9:.3g} GFLOP, as much as {passes:.1f} forward passes of '
    'the student',
    f'data      {dataset.name}: {len(dataset.train.label)} training, '
    f'{len(dataset.val.label)} validation, {len(dataset.test.label)} test '
    'images',
    f'run       {epochs} epochs = {steps} steps',
  ]


def _size(network: networks.Network) -> str:
  count = models.num_params(network.variables['params'])
  return f'{network.name}, {count:,} parameters'
