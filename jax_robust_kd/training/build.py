"""The only place where names in a config become objects."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, models, threat
from jax_robust_kd.attacks import ascent
from jax_robust_kd.config import Config, check_arguments
from jax_robust_kd.core import AXIS, ROBUST, Method, TrainState, UserError
from jax_robust_kd.evaluation import evaluate, published
from jax_robust_kd.methods import METHODS
from jax_robust_kd.networks import Network, load_teacher, make_model
from jax_robust_kd.runtime.imports import load_object, names_object, short
from jax_robust_kd.training import averages, checks, gradients, optim
from jax_robust_kd.training.step import Recipe, create_state


def load_data(c: Config) -> data.Dataset:
  """Finds the data set of a config."""
  fields = data.Reading._fields
  dataset = data.load(
    c.data.name,
    data_dir=c.data.data_dir,
    train_split=c.data.train_split,
    test_split=c.data.test_split,
    num_train=c.data.num_train,
    val_size=c.data.val_size,
    val=c.data.val,
    reading=data.Reading(**{key: c.data[key] for key in fields}),
  )
  if not c.data.extra.file:
    return dataset
  return dataset._replace(
    extra=data.load_extra(
      c.data.extra.file,
      share=c.data.extra.share,
      labels=c.data.extra.labels,
      shape=dataset.train.image.shape[1:],
      num_classes=dataset.num_classes,
    )
  )


def check(c: Config, dataset: data.Dataset, mode: str = 'train') -> None:
  """Checks a config against the data and the devices, before any compile.

  In the modes of `job.run`; only in 'train' it validates.

  Raises:
    UserError: the first mistake.
  """
  config_lib.validate(c)
  make_optimizer(c, steps_per_epoch=1)
  checks.check_batches(c)
  if len(dataset.train.label) < c.data.batch_size:
    raise UserError(
      f'data.batch_size={c.data.batch_size} is larger than the '
      f'{len(dataset.train.label)} training images'
    )
  method = make_method(c)
  if _teacher_labels(c) and ROBUST not in method.teachers:
    raise UserError(
      f"data.extra.labels='teacher', but method {c.method.name!r} has no "
      "teacher; use 'file'"
    )
  checks.check_num_examples(c, dataset)
  checks.check_attacks(c, mode)
  for name in method.teachers:
    group, given = config_lib.teacher_group(c, name)
    if given.checkpoint and given.function:
      raise UserError(
        f'{group}.checkpoint={given.checkpoint} and {group}.function='
        f'{given.function} are two teachers; clear one of them'
      )
    if not (given.checkpoint or given.function or given.config):
      raise UserError(
        f'method {c.method.name!r} needs a {name} teacher: set '
        f'config.{group}.checkpoint to the workdir of a trained run or to a '
        f'file of weights, or config.{group}.config to the config that trains '
        'one'
      )
  make_augment(c, dataset)
  make_student(c, dataset)
  if method.peer:
    make_peer(c, dataset)


def _teacher_labels(c: Config) -> bool:
  """Returns whether there are images that only the teacher can label."""
  return bool(c.data.extra.file) and c.data.extra.labels == 'teacher'


def make_method(c: Config) -> Method:
  """Builds the method of a config."""
  arguments = c.method.to_dict()
  name = arguments.pop('name')
  if name not in METHODS and not names_object(name):
    raise UserError(
      f'method.name={name!r} is unknown; use one of: '
      f'{", ".join(sorted(METHODS))}'
    )
  factory = METHODS.get(name) or load_object('method.name', name)
  check_arguments(f'method (of {name})', factory, arguments)
  method = factory(**arguments)
  if not isinstance(method, Method):
    raise UserError(
      f'method.name={name!r} returns a {type(method).__name__}; return a Method'
    )
  return method


def make_student(c: Config, dataset: data.Dataset) -> nn.Module:
  """Builds the student's module."""
  return _make(c, c.student, dataset)


def make_peer(c: Config, dataset: data.Dataset) -> nn.Module:
  """Builds the module of the network that is trained beside the student."""
  return _make(c, c.peer if c.peer.name else c.student, dataset)


def _make(c: Config, network: Config, dataset: data.Dataset) -> nn.Module:
  together = {'bn_axis_name': AXIS} if c.sync_bn else {}
  return make_model({**together, **network.to_dict()}, dataset, c.precision)


def init_network(
  c: Config, dataset: data.Dataset, make: Callable = make_student
) -> Network:
  """Initialises the student, or what else `make` makes."""
  module = make(c, dataset)
  image = jnp.zeros((1, *dataset.train.image.shape[1:]))
  # A peer of the student's kind starts from other weights than the student.
  place = 0 if make is make_student else 2
  key = jax.random.fold_in(jax.random.key(c.seed), place)
  variables = models.init(module, key, image)
  forward = partial(models.forward, module)
  return Network(
    short(c.student.name if make is make_student else c.peer.name),
    forward,
    dict(variables),
    dataset.num_classes,
    module=module,
  )


class Networks(NamedTuple):
  """The networks of a run.

  Attributes:
    student: what is trained.
    teachers: frozen, by name.
    peer: what is trained beside it, or None.
  """

  student: Network
  teachers: dict[str, Network]
  peer: Network | None


def make_networks(c: Config, dataset: data.Dataset) -> Networks:
  """Reads the teachers that the method asks, and draws what is trained.

  Raises:
    UserError: a teacher cannot be read, or is not the one that was meant.
  """
  method = make_method(c)
  # Read first: it may be refused, and drawing compiles.
  teachers = {name: load_teacher(c, name, dataset) for name in method.teachers}
  settings = evaluate.Settings(
    (), threat.make_budget(c), c.seed, c.eval.batch_size
  )
  for teacher in teachers.values():
    published.check_clean(teacher, dataset, settings)
  return Networks(
    init_network(c, dataset),
    teachers,
    init_network(c, dataset, make_peer) if method.peer else None,
  )


def make_recipe(
  c: Config, networks: Networks, dataset: data.Dataset, steps_per_epoch: int
) -> tuple[Recipe, Callable]:
  """Builds what the training step is made of, and the schedule."""
  tx, schedule = make_optimizer(c, steps_per_epoch)
  maximize = partial(
    ascent,
    norm=c.train_attack.norm,
    epsilon=threat.parse_radius('train_attack.epsilon', c.train_attack.epsilon),
    step_size=threat.parse_radius(
      'train_attack.step_size', c.train_attack.step_size
    ),
    num_steps=c.train_attack.num_steps,
    init=c.train_attack.init,
  )
  recipe = Recipe(
    method=make_method(c),
    maximize=maximize,
    augment=make_augment(c, dataset),
    student=networks.student.forward,
    teachers={k: t.forward for k, t in networks.teachers.items()},
    tx=tx,
    attack_mode=c.train_attack.bn,
    total_steps=c.optimizer.epochs * steps_per_epoch,
    average=make_average(c, steps_per_epoch),
    gradient=make_gradient(c, steps_per_epoch),
    teacher_labels=_teacher_labels(c),
    peer=networks.peer.forward if networks.peer else None,
    accumulate=c.optimizer.accumulate,
  )
  return recipe, schedule


def make_optimizer(
  c: Config, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, Callable]:
  """Builds the optimizer, and step -> learning rate."""
  o = c.optimizer
  schedule = optim.make_schedule(
    o.schedule,
    learning_rate=o.learning_rate,
    total_steps=o.epochs * steps_per_epoch,
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
  return tx, schedule


def make_augment(c: Config, dataset: data.Dataset) -> Callable:
  """Builds the augmentation."""
  return data.make_augment(
    num_classes=dataset.num_classes, **c.data.augment.to_dict()
  )


def make_average(c: Config, steps_per_epoch: int) -> averages.Average | None:
  """Builds how averaged weights are kept, None for not at all."""
  o = c.optimizer
  if o.ema_decay:
    return averages.ema(o.ema_decay)
  if o.swa_start:
    start = round(o.swa_start * o.epochs * steps_per_epoch)
    return averages.swa(start, steps_per_epoch)
  return None


def make_gradient(c: Config, steps_per_epoch: int) -> Callable:
  """Builds how the gradient is taken."""
  o = c.optimizer
  warmup = round(o.awp_warmup_epochs * steps_per_epoch)
  return gradients.awp(o.awp_gamma, warmup) if o.awp_gamma else gradients.plain


def make_state(
  c: Config, recipe: Recipe, networks: Networks, dataset: data.Dataset
) -> TrainState:
  """Returns the state before the first step."""
  image = jnp.zeros((2, *dataset.train.image.shape[1:]))
  student = networks.student
  asked = (student, *networks.teachers.values())[:2]
  outputs = [
    jax.jit(partial(n.forward, mode='eval'))(n.variables, image)
    for n in (student, asked[-1])
  ]
  key = partial(jax.random.fold_in, jax.random.key(c.seed))
  method, rows = recipe.method, len(dataset.train.label)
  return create_state(
    seed=c.seed,
    variables=student.variables,
    tx=recipe.tx,
    heads=method.init_heads(key(1), *outputs),
    average=recipe.average,
    peer=networks.peer.variables if networks.peer else None,
    memory=method.init_memory(key(3), *outputs, rows),
  )
