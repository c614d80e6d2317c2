"""The only place where names in a config become objects."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, models, optim, threat
from jax_robust_kd.attacks import Budget, ascent, suite
from jax_robust_kd.config import Config, check_arguments
from jax_robust_kd.core import Method, TrainState, UserError
from jax_robust_kd.methods import METHODS
from jax_robust_kd.networks import Network, make_model
from jax_robust_kd.train_step import Recipe, create_state


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
  if _teacher_labels(c) and not make_method(c).needs_teacher:
    raise UserError(
      f"data.extra.labels='teacher', but method {c.method.name!r} has no "
      "teacher; use 'file'"
    )
  if c.eval.num_examples > len(dataset.test.label):
    raise UserError(
      f'eval.num_examples={c.eval.num_examples} is larger than the '
      f'{len(dataset.test.label)} test images; 0 takes all'
    )
  suite.plan((c.eval.attack, *c.eval.suite), make_budget(c))
  method = make_method(c)
  if method.needs_teacher and not (c.teacher.checkpoint or c.teacher.config):
    raise UserError(
      f'method {c.method.name!r} needs a teacher: set '
      'config.teacher.checkpoint to the workdir of a trained run, or '
      'config.teacher.config to the config that trains one'
    )
  make_student(c, dataset)


def _teacher_labels(c: Config) -> bool:
  """Returns whether there are images that only the teacher can label."""
  return bool(c.data.extra.file) and c.data.extra.labels == 'teacher'


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
  norm, epsilon, step_size = threat.threat_model(c)
  return Budget(
    norm=norm,
    epsilon=threat.parse_radius('eval.epsilon', epsilon),
    step_size=threat.parse_radius('eval.step_size', step_size),
  )


def make_student(c: Config, dataset: data.Dataset) -> nn.Module:
  """Builds the student's module."""
  return make_model(c.student.to_dict(), dataset, c.precision)


def init_network(c: Config, dataset: data.Dataset) -> Network:
  """Initialises the student."""
  module = make_student(c, dataset)
  image = jnp.zeros((1, *dataset.train.image.shape[1:]))
  key = jax.random.fold_in(jax.random.key(c.seed), 0)
  variables = models.init(module, key, image)
  forward = partial(models.forward, module)
  return Network(
    c.student.name,
    forward,
    dict(variables),
    dataset.num_classes,
    module=module,
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
    epsilon=threat.parse_radius('attack.epsilon', c.attack.epsilon),
    step_size=threat.parse_radius('attack.step_size', c.attack.step_size),
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
    teacher_labels=_teacher_labels(c),
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
