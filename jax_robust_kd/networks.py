"""Networks with their weights: drawn, read from a run, or of others."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
import re
from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from jax_robust_kd import data, models
from jax_robust_kd.config import Config, teacher_group
from jax_robust_kd.core import PyTree, UserError
from jax_robust_kd.interop import functions, read, recognize, zoo
from jax_robust_kd.runtime import checkpoint as checkpoint_lib
from jax_robust_kd.runtime import console, imports
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
    module: what `forward` applies; None for a function of the user's.
    published: of a known teacher.
  """

  name: str
  forward: Callable
  variables: PyTree
  num_classes: int
  sha256: str = ''
  step: int = 0
  chosen_by: str = ''
  module: nn.Module | None = None
  published: zoo.Known | None = None


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
  found = checkpoint_lib.read(Path(workdir), which)
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
    imports.short(c.student.name),
    partial(models.forward, module),
    variables,
    record['num_classes'],
    checkpoint_lib.tree_sha256(variables),
    int(state['step']),
    'nothing, the last step' if which == 'last' else record['chosen_by'],
    module,
  )
  return network, record


def is_file(checkpoint: str) -> bool:
  """Returns whether this names a file of weights and not a run's workdir."""
  named = re.search(r'\.(npz|safetensors|pt|pth|ckpt|tar)(:|$)', checkpoint)
  path = Path(checkpoint)
  is_known = checkpoint.startswith(zoo.PREFIX)
  return is_known or not path.is_dir() and bool(named or path.is_file())


def load_file(
  checkpoint: str,
  dataset: data.Dataset,
  arch: str = '',
  precision: str = 'float32',
  folder: str = '',
) -> Network:
  """Loads a network of another program.

  Args:
    checkpoint: file of weights, as for `interop.read.read_state`, or 'zoo:NAME'
      for one that `models/teachers.json` lists.
    dataset: whose images it will see.
    arch: name and fields of its model, as `recognize.parse` reads them; '':
      those that its keys, or the list, tell.
    precision: 'float32' or 'bfloat16'.
    folder: of the files that 'zoo:' means; '': that of the environment.

  Raises:
    UserError: it cannot be read, or is for other images or other classes.
  """
  teacher, path = None, checkpoint
  if checkpoint.startswith(zoo.PREFIX):
    teacher = zoo.find(checkpoint.removeprefix(zoo.PREFIX), dataset.name)
    path = zoo.locate(teacher, folder)
    console.say(f'{checkpoint} is {teacher.name}, from {path}')
  state = read.read_state(path)
  num_classes, channels = recognize.measure(state)
  _check_fits(path, num_classes, channels, dataset)
  text = arch or (teacher.arch if teacher else '')
  found = recognize.parse(text, num_classes) if text else None
  if found:
    listed = {'mean': teacher.mean, 'std': teacher.std} if teacher else {}
    fields = {**listed, **recognize.normalization(state), **found.fields}
    found = found._replace(fields=fields)
    if not teacher and 'mean' not in fields:
      console.say(
        f'{path}: neither its keys nor {arch!r} name mean and std: it is given '
        'pixels in [0, 1]'
      )
  module, variables = recognize.fit(path, state, found, console.say)
  name = found.name if found else recognize.recognize(state).name
  module = module.clone(dtype=jnp.dtype(precision))
  return Network(
    name,
    partial(models.forward, module),
    variables,
    num_classes,
    checkpoint_lib.tree_sha256(variables),
    chosen_by=f'whoever published {checkpoint}',
    module=module,
    published=teacher,
  )


def _check_fits(
  path: str, num_classes: int, channels: int, dataset: data.Dataset
) -> None:
  """Refuses a network of other classes or channels than the data have."""
  given = (num_classes, channels)
  expected = (dataset.num_classes, dataset.train.image.shape[-1])
  for what, theirs, ours in zip(
    ('classes', 'channels'), given, expected, strict=True
  ):
    if theirs != ours:
      raise UserError(
        f'the network in {path} has {theirs} {what}, data set '
        f'{dataset.name!r} has {ours}'
      )


def load_function(field: str, spec: str, dataset: data.Dataset) -> Network:
  """Loads a function of the user's, images to logits, as a network.

  Args:
    field: the setting that names it, for messages.
    spec: 'package.module:name'.
    dataset: whose images it will see.

  Raises:
    UserError: it cannot be imported or called, or is for other classes.
  """
  function = imports.load_object(field, spec)
  shape = tuple(dataset.train.image.shape[1:])
  forward, variables, classes = functions.wrap(
    f'{field}={spec}', function, shape
  )
  _check_fits(spec, classes, shape[-1], dataset)
  sha256 = checkpoint_lib.tree_sha256(variables) if variables['params'] else ''
  return Network(spec, forward, variables, classes, sha256)


def in_precision(network: Network, precision: str) -> Callable:
  """Returns the network's forward, computed in 'float32' or 'bfloat16'.

  A function of the user's computes in its own.
  """
  if network.module is None:
    return network.forward
  module = network.module.clone(dtype=jnp.dtype(precision))
  return partial(models.forward, module)


def load_teacher(c: Config, name: str, dataset: data.Dataset) -> Network:
  """Loads the teacher of a name.

  Raises:
    UserError: it cannot be read, or has other weights than its `sha256`.
  """
  group, given = teacher_group(c, name)
  if given.function:
    teacher = load_function(f'{group}.function', given.function, dataset)
  elif is_file(given.checkpoint):
    teacher = load_file(given.checkpoint, dataset, given.arch, c.precision)
  else:
    teacher = load_network(given.checkpoint, dataset)
  if given.sha256 and not teacher.sha256.startswith(given.sha256):
    source = given.checkpoint or given.function
    raise UserError(
      f'the teacher in {source} has sha256 {teacher.sha256}, not '
      f'{group}.sha256={given.sha256}; clear that field to accept it'
    )
  return teacher
