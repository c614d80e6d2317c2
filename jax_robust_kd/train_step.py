"""The training step: pure, compiled once, without any config."""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jax_robust_kd.core import (
  AXIS,
  Array,
  Context,
  Method,
  Output,
  PyTree,
  TrainState,
  image_keys,
)
from jax_robust_kd.data import to_float

# What a step's key is folded with, so that no two uses share a key.
_AUGMENT, _ATTACK = 0, 1


class Recipe(NamedTuple):
  """What a step is made of; built from the config in `train.build`.

  Attributes:
    method: inner and outer problem.
    maximize: (rng [B], loss_fn, image) -> Ascent, the attack of the config.
    augment: (key, index [B], image, label) -> Batch, one view for both nets.
    student: (variables, image, mode) -> Output.
    teacher: the same of the teacher, or None.
    tx: the optimizer.
    attack_mode: BatchNorm of the student while attacked, 'eval' or 'batch'.
    total_steps: of the whole run.
    ema_decay: of the averaged weights, 0 for none.
    teacher_labels: an image of label -1 gets the class the teacher sees in it.
  """

  method: Method
  maximize: Callable
  augment: Callable
  student: Callable
  teacher: Callable | None
  tx: optax.GradientTransformation
  attack_mode: str
  total_steps: int
  ema_decay: float
  teacher_labels: bool = False


def create_state(
  *,
  seed: int,
  variables: PyTree,
  heads: PyTree,
  tx: optax.GradientTransformation,
  ema: bool,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    seed: of every key of the run.
    variables: the student's {'params', 'batch_stats'}.
    heads: extra weights of the method, or {}.
    tx: the optimizer.
    ema: whether to keep averaged student weights.
  """
  params = {'student': variables['params'], 'heads': heads}
  # A copy: the step donates the state, and a shared array would be deleted.
  average = jax.tree.map(jnp.copy, variables['params']) if ema else {}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    ema_params=average,
    opt_state=tx.init(params),
    seed=jnp.asarray(seed, jnp.uint32),
  )


def update_average(
  average: PyTree, params: PyTree, step: Array, decay: float
) -> PyTree:
  """EMA with decay min(decay, (1 + n) / (10 + n)) after n steps."""
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)


def train_step(
  recipe: Recipe, state: TrainState, teacher_variables: PyTree, batch: dict
) -> tuple[TrainState, dict[str, Array]]:
  """Takes one optimizer step; bind `recipe` first with `functools.partial`.

  It must run under the device axis AXIS: by `parallel.pmap_step`, or by `vmap`
  with that axis name, which raises if anything that leaves was not averaged.

  Args:
    recipe: what the step is made of.
    state: the training state; not modified.
    teacher_variables: frozen weights of the teacher, or {}. An argument, since
      as a captured constant they would be compiled into the program.
    batch: uint8 'image' [B, H, W, C], int32 'label' [B] and int32 'index' [B],
      each image's place in the global batch.

  Returns:
    The next state, and scalar metrics with 'loss' among them.
  """
  key = jax.random.fold_in(jax.random.key(state.seed), state.step)
  index, label = batch['index'], batch['label']
  if recipe.teacher_labels:
    label = _label(recipe, teacher_variables, batch['image'], label)
  view = recipe.augment(
    jax.random.fold_in(key, _AUGMENT), index, batch['image'], label
  )
  attacked = _context(
    recipe, state, state.params, teacher_variables, recipe.attack_mode
  )
  rng = image_keys(jax.random.fold_in(key, _ATTACK), index)
  adv = recipe.method.perturb(rng, attacked, view, recipe.maximize)
  adv = jax.lax.stop_gradient(adv)

  def loss_fn(params):
    ctx = _context(recipe, state, params, teacher_variables, 'train')
    out = recipe.method.loss(ctx, view, adv)
    return out.loss, out

  grads, out = jax.grad(loss_fn, has_aux=True)(state.params)
  metrics = {'loss': out.loss, **out.metrics}
  averaged = jax.lax.pmean((grads, out.batch_stats, metrics), AXIS)
  return _update(recipe, state, *averaged)


def _label(
  recipe: Recipe, teacher_variables: PyTree, image: Array, label: Array
) -> Array:
  """Replaces labels of -1 by the teacher's, as Carmon et al. 2019."""
  if recipe.teacher is None:
    raise ValueError('there is no teacher to label the images')
  output = recipe.teacher(teacher_variables, to_float(image), 'eval')
  return jnp.where(label < 0, output.logits.argmax(-1), label)


def _context(
  recipe: Recipe,
  state: TrainState,
  params: PyTree,
  teacher_variables: PyTree,
  mode: str,
) -> Context:
  """Binds weights to both networks; `models.forward` names the modes."""

  def student(image: Array, batch_stats: PyTree = state.batch_stats) -> Output:
    variables = {'params': params['student'], 'batch_stats': batch_stats}
    return recipe.student(variables, image, mode)

  def teacher(image: Array) -> Output:
    if recipe.teacher is None:
      raise ValueError('this method was built without a teacher')
    return recipe.teacher(teacher_variables, image, 'eval')

  progress = state.step / recipe.total_steps
  return Context(student, teacher, params['heads'], progress)


def _update(
  recipe: Recipe,
  state: TrainState,
  grads: PyTree,
  batch_stats: PyTree,
  metrics: dict[str, Array],
) -> tuple[TrainState, dict[str, Array]]:
  """Applies averaged gradients."""
  updates, opt_state = recipe.tx.update(grads, state.opt_state, state.params)
  params = cast(PyTree, optax.apply_updates(state.params, updates))
  average = state.ema_params
  if recipe.ema_decay:
    average = update_average(
      average, params['student'], state.step, recipe.ema_decay
    )
  state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    ema_params=average,
    opt_state=opt_state,
  )
  return state, {**metrics, 'grad_norm': optax.tree.norm(grads)}
