"""Networks with their weights: drawn, or read from a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from jax_robust_kd import data, models
from jax_robust_kd.config import Config, teacher_group
from jax_robust_kd.core import PyTree, UserError
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.workdir import read_config


class Network(NamedTuple):
  """A network with its weights.

  Attributes:
    name: of the architecture.
    forward: (variables, image, mode) -> Output.
    variables: {'params', 'batch_stats'}.
    num_classes: K.
    sha256: of the weights, '' if they were just initialised.
    step: optimizer steps they were trained for.
    chosen_by: how the checkpoint was chosen.
    module: what `forward` applies.
  """

  name: str
  forward: Callable
  variables: PyTree
  num_classes: int
  sha256: str = ''
  step: int = 0
  chosen_by: str = ''
  module: nn.Module | None = None


def make_model(
  fields: dict, dataset: data.Dataset, precision: str
) -> nn.Module:
  """Builds a module by name, normalizing with the data set's statistics."""
  fields = {'mean': dataset.mean, 'std': dataset.std, **fields}
  return build_module(fields, dataset.num_classes, precision)


def build_module(fields: dict, num_classes: int, precision: str) -> nn.Module:
  """Builds a module by name, normalizing with `mean` and `std` of `fields`."""
  fields = dict(fields)
  name = fields.pop('name')
  for key in ('depth', 'width'):
    if key in fields and fields[key] <= 0:
      raise UserError(f'{key}={fields[key]} of model {name!r} must be above 0')
  dtype = jnp.bfloat16 if precision == 'bfloat16' else jnp.float32
  return models.build(name, num_classes, {**fields, 'dtype': dtype})


def describe_data(dataset: data.Dataset) -> dict:
  """Returns what a checkpoint's record keeps of a data set.

  With it a network can be used where its training images are not.
  """
  return {
    'dataset': dataset.name,
    'num_classes': dataset.num_classes,
    'class_names': list(dataset.class_names),
    'image_shape': list(dataset.train.image.shape[1:]),
    'normalization': {'mean': dataset.mean, 'std': dataset.std},
  }


def load_network(
  workdir: str,
  dataset: data.Dataset,
  which: str = 'best',
  any_classes: bool = False,
) -> Network:
  """Loads the network that a run trained.

  Args:
    workdir: of a run of this program.
    dataset: whose images it will see.
    which: 'best' or 'last'.
    any_classes: whether it may be trained for another number of classes.

  Raises:
    UserError: there is no such run, it has no checkpoint, or it was trained
      for another number of classes.
  """
  network, _ = read_network(workdir, which)
  if not any_classes and network.num_classes != dataset.num_classes:
    raise UserError(
      f'the network in {workdir} has {network.num_classes} classes, '
      f'data set {dataset.name!r} has {dataset.num_classes}'
    )
  return network


def read_network(workdir: str, which: str = 'best') -> tuple[Network, dict]:
  """Reads the network that a run trained, and the record beside it.

  Args and errors are those of `load_network`.
  """
  c = read_config(workdir)
  found = checkpoint.read(Path(workdir), which)
  if found is None:
    raise UserError(f'{workdir} has no {which!r} checkpoint; is it finished?')
  state, record = found
  module = build_module(
    {**record['normalization'], **c.student.to_dict()},
    record['num_classes'],
    c.precision,
  )
  params = state['ema_params'] or state['params']['student']
  stats = state.get('ema_stats') or state['batch_stats'] or {}
  variables = {'params': params, 'batch_stats': stats}
  network = Network(
    c.student.name,
    partial(models.forward, module),
    variables,
    record['num_classes'],
    checkpoint.tree_sha256(variables),
    int(state['step']),
    'nothing, the last step' if which == 'last' else record['chosen_by'],
    module,
  )
  return network, record


def in_precision(network: Network, precision: str) -> Callable:
  """Returns the network's forward, computed in 'float32' or 'bfloat16'."""
  assert network.module is not None
  module = network.module.clone(dtype=jnp.dtype(precision))
  return partial(models.forward, module)


def load_teacher(c: Config, name: str, dataset: data.Dataset) -> Network:
  """Loads the teacher of a name.

  Raises:
    UserError: it cannot be read, or has other weights than its `sha256`.
  """
  group, given = teacher_group(c, name)
  teacher = load_network(given.checkpoint, dataset)
  if given.sha256 and not teacher.sha256.startswith(given.sha256):
    raise UserError(
      f'the teacher in {given.checkpoint} has sha256 {teacher.sha256}, not '
      f'{group}.sha256={given.sha256}; clear that field to accept it'
    )
  return teacher
