"""The only place where names in a config become objects."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jax_robust_kd import checkpoint, data, models, optim
from jax_robust_kd import config as config_lib
from jax_robust_kd.attacks import Budget, ascent, parse_attack
from jax_robust_kd.config import Config, check_arguments, parse_radius
from jax_robust_kd.core import Method, PyTree, TrainState, UserError
from jax_robust_kd.methods import METHODS
from jax_robust_kd.metrics import read_json
from jax_robust_kd.train_step import Recipe, create_state


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
  """

  name: str
  forward: Callable
  variables: PyTree
  num_classes: int
  sha256: str = ''
  step: int = 0
  chosen_by: str = ''


def load_data(c: Config) -> data.Dataset:
  """Reads the data set of a config."""
  return data.load(
    c.data.name,
    data_dir=c.data.data_dir,
    train_split=c.data.train_split,
    test_split=c.data.test_split,
    num_train=c.data.num_train,
    val_size=c.data.val_size,
  )


def check(c: Config, dataset: data.Dataset) -> None:
  """Checks a config against the data and the devices, before any compile.

  Raises:
    UserError: the first mistake.
  """
  config_lib.validate(c)
  devices = jax.device_count()
  for name, size in (
    ('data.batch_size', c.data.batch_size),
    ('eval.batch_size', c.eval.batch_size),
  ):
    if size % devices:
      raise UserError(
        f'{name}={size} does not divide over {devices} devices; use a '
        f'multiple of {devices}'
      )
  mixes = c.data.augment.mixup_alpha or c.data.augment.cutmix_alpha
  if mixes and c.data.batch_size // devices % 2:
    raise UserError(
      f'data.batch_size={c.data.batch_size} gives {devices} devices an odd '
      'number of images each; mixup and CutMix need an even one'
    )
  if len(dataset.train.label) < c.data.batch_size:
    raise UserError(
      f'data.batch_size={c.data.batch_size} is larger than the '
      f'{len(dataset.train.label)} training images'
    )
  if c.eval.num_examples > len(dataset.test.label):
    raise UserError(
      f'eval.num_examples={c.eval.num_examples} is larger than the '
      f'{len(dataset.test.label)} test images; 0 takes all'
    )
  for spec in (c.eval.attack, *c.eval.suite):
    parse_attack(spec, make_budget(c))
  method = make_method(c)
  if method.needs_teacher and not (c.teacher.checkpoint or c.teacher.config):
    raise UserError(
      f'method {c.method.name!r} needs a teacher: set '
      'config.teacher.checkpoint to the workdir of a trained run, or '
      'config.teacher.config to the config that trains one'
    )
  make_student(c, dataset)


def make_method(c: Config) -> Method:
  """Builds the method of a config."""
  arguments = c.method.to_dict()
  name = arguments.pop('name')
  if name not in METHODS:
    raise UserError(
      f'method.name={name!r} is unknown; use one of: '
      f'{", ".join(sorted(METHODS))}'
    )
  check_arguments(f'method (of {name})', METHODS[name], arguments)
  return METHODS[name](**arguments)


def make_budget(c: Config) -> Budget:
  """Builds the threat model that is evaluated."""
  norm, epsilon, step_size = config_lib.threat_model(c)
  return Budget(
    norm=norm,
    epsilon=parse_radius('eval.epsilon', epsilon),
    step_size=parse_radius('eval.step_size', step_size),
  )


def make_student(c: Config, dataset: data.Dataset) -> nn.Module:
  """Builds the student's module."""
  return make_model(c.student.to_dict(), dataset, c.precision)


def make_model(
  fields: dict, dataset: data.Dataset, precision: str
) -> nn.Module:
  """Builds a module by name, normalizing with the data set's statistics."""
  fields = {'mean': dataset.mean, 'std': dataset.std, **fields}
  name = fields.pop('name')
  dtype = jnp.bfloat16 if precision == 'bfloat16' else jnp.float32
  return models.build(name, dataset.num_classes, {**fields, 'dtype': dtype})


def init_network(c: Config, dataset: data.Dataset) -> Network:
  """Initialises the student."""
  module = make_student(c, dataset)
  image = jnp.zeros((1, *dataset.train.image.shape[1:]))
  key = jax.random.fold_in(jax.random.key(c.seed), 0)
  variables = models.init(module, key, image)
  forward = partial(models.forward, module)
  return Network(c.student.name, forward, dict(variables), dataset.num_classes)


def load_network(
  workdir: str, dataset: data.Dataset, which: str = 'best'
) -> Network:
  """Loads the network that a run trained.

  Args:
    workdir: of a run of this program.
    dataset: whose images it will see.
    which: 'best' or 'last'.

  Raises:
    UserError: there is no such run, it has no checkpoint, or it was trained
      for another number of classes.
  """
  path = Path(workdir)
  if not (path / 'config.json').exists():
    raise UserError(
      f'{workdir} is not the workdir of a run (it has no config.json)'
    )
  c: Config = ConfigDict(read_json(path / 'config.json'))
  found = checkpoint.read(path, which)
  if found is None:
    raise UserError(f'{workdir} has no {which!r} checkpoint; is it finished?')
  state, record = found
  if record['num_classes'] != dataset.num_classes:
    raise UserError(
      f'the network in {workdir} has {record["num_classes"]} classes, '
      f'data set {dataset.name!r} has {dataset.num_classes}'
    )
  module = make_model(
    {**record['normalization'], **c.student.to_dict()}, dataset, c.precision
  )
  params = state['ema_params'] or state['params']['student']
  variables = {'params': params, 'batch_stats': state['batch_stats'] or {}}
  forward = partial(models.forward, module)
  return Network(
    c.student.name,
    forward,
    variables,
    dataset.num_classes,
    checkpoint.tree_sha256(variables),
    int(state['step']),
    'nothing, the last step' if which == 'last' else record['chosen_by'],
  )


def check_teacher(c: Config, teacher: Network) -> None:
  """Refuses a teacher with other weights than `teacher.sha256`, if given."""
  wanted = c.teacher.sha256
  if wanted and not teacher.sha256.startswith(wanted):
    raise UserError(
      f'the teacher in {c.teacher.checkpoint} has sha256 {teacher.sha256}, '
      f'not teacher.sha256={wanted}; clear that field to accept it'
    )


def make_recipe(
  c: Config,
  student: Network,
  teacher: Network | None,
  dataset: data.Dataset,
  steps_per_epoch: int,
) -> tuple[Recipe, Callable]:
  """Builds what the training step is made of, and the schedule."""
  total_steps = c.optimizer.epochs * steps_per_epoch
  o = c.optimizer
  schedule = optim.make_schedule(
    o.schedule,
    learning_rate=o.learning_rate,
    total_steps=total_steps,
    warmup_steps=round(o.warmup_epochs * steps_per_epoch),
    milestones=tuple(o.milestones),
    decay=o.decay,
  )
  tx = optim.make_optimizer(
    o.name,
    schedule,
    momentum=o.momentum,
    nesterov=o.nesterov,
    weight_decay=o.weight_decay,
    decay_on=o.decay_on,
    clip_norm=o.clip_norm,
  )
  maximize = partial(
    ascent,
    norm=c.attack.norm,
    epsilon=parse_radius('attack.epsilon', c.attack.epsilon),
    step_size=parse_radius('attack.step_size', c.attack.step_size),
    num_steps=c.attack.num_steps,
    init=c.attack.init,
  )
  recipe = Recipe(
    method=make_method(c),
    maximize=maximize,
    augment=data.make_augment(
      num_classes=dataset.num_classes, **c.data.augment.to_dict()
    ),
    student=student.forward,
    teacher=teacher.forward if teacher else None,
    tx=tx,
    attack_mode=c.attack.bn,
    total_steps=total_steps,
    ema_decay=o.ema_decay,
  )
  return recipe, schedule


def make_state(
    c: Config, recipe: Recipe, student: Network, teacher: Network | None,
    dataset: data.Dataset,
) -> TrainState:  # fmt: skip
  """Returns the state before the first step."""
  image = jnp.zeros((2, *dataset.train.image.shape[1:]))
  outputs = [
    jax.jit(partial(n.forward, mode='eval'))(n.variables, image)
    for n in (student, teacher or student)
  ]
  key = jax.random.fold_in(jax.random.key(c.seed), 1)
  return create_state(
    seed=c.seed,
    variables=student.variables,
    heads=recipe.method.init_heads(key, *outputs),
    tx=recipe.tx,
    ema=c.optimizer.ema_decay > 0,
  )
