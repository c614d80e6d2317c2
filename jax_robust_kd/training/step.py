"""The training step: pure, compiled once, without any config."""

from collections.abc import Callable
import dataclasses
import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jax_robust_kd.core import (
  AXIS,
  ROBUST,
  Array,
  Batch,
  Context,
  LossOutput,
  Method,
  Output,
  PyTree,
  TrainState,
  image_keys,
)
from jax_robust_kd.data import to_float
from jax_robust_kd.training.averages import Average
from jax_robust_kd.training.gradients import plain

# What a step's key is folded with, so that no two uses share a key.
_AUGMENT, _ATTACK, _DRAW = 0, 1, 2


class Recipe(NamedTuple):
  """What a step is made of; built from the config in `training.build`.

  Attributes:
    method: inner and outer problem.
    maximize: (rng [B], loss_fn, image) -> Ascent, the attack of the config.
    augment: (key, index [B], image, label) -> Batch, one view for both nets.
    student: (variables, image, mode) -> Output.
    teachers: name -> the same of a teacher.
    tx: the optimizer.
    attack_mode: BatchNorm of the student while attacked, 'eval' or 'batch'.
    total_steps: of the whole run.
    average: how averaged weights are kept, None for none.
    gradient: (grad_fn, params, step) -> (grads, LossOutput), such as `awp`.
    teacher_labels: an image of label -1 gets the class the teacher sees in it.
    peer: as `student`, of the network that is trained beside it, or None.
    accumulate: parts that a device's batch is cut into, one after the other,
      each attacked and passed by itself. Images are mixed over the whole batch;
      BatchNorm, contrasts and `memory` see a part at a time.
  """

  method: Method
  maximize: Callable
  augment: Callable
  student: Callable
  teachers: dict[str, Callable]
  tx: optax.GradientTransformation
  attack_mode: str
  total_steps: int
  average: Average | None = None
  gradient: Callable = plain
  teacher_labels: bool = False
  peer: Callable | None = None
  accumulate: int = 1


def create_state(
  *,
  seed: int,
  variables: PyTree,
  tx: optax.GradientTransformation,
  heads: PyTree = None,
  average: Average | None = None,
  peer: PyTree = None,
  memory: PyTree = None,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    seed: of every key of the run.
    variables: the student's {'params', 'batch_stats'}.
    tx: the optimizer.
    heads: extra weights of the method, None for none.
    average: how averaged weights are kept.
    peer: the peer's {'params', 'batch_stats'}, None for no peer.
    memory: what the method carries from step to step, None for nothing.
  """
  params = {'student': variables['params'], 'heads': heads or {}}
  if peer:
    params['peer'] = peer['params']
  stats = variables.get('batch_stats', {})
  # Copies: the step donates the state, and a shared array would be deleted.
  copy = functools.partial(jax.tree.map, jnp.copy)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=stats,
    ema_params=copy(variables['params']) if average else {},
    ema_stats=copy(stats) if average and average.own_stats else {},
    peer_stats=peer.get('batch_stats', {}) if peer else {},
    memory={} if memory is None else memory,
    opt_state=tx.init(params),
    seed=jnp.asarray(seed, jnp.uint32),
  )


def train_step(
  recipe: Recipe, state: TrainState, teacher_variables: PyTree, batch: dict
) -> tuple[TrainState, dict[str, Array]]:
  """Takes one optimizer step; bind `recipe` first with `functools.partial`.

  It must run under the device axis AXIS: by `parallel.pmap_step`, or by `vmap`
  with that axis name, which raises if anything that leaves was not averaged.

  Args:
    recipe: what the step is made of.
    state: the training state; not modified.
    teacher_variables: name -> frozen weights of a teacher. An argument, since
      as captured constants they would be compiled into the program.
    batch: uint8 'image' [B, H, W, C], int32 'label' [B], and int32 'index' [B]
      and 'row' [B]: each image's place in the global batch and in the training
      images.

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
  view = view.replace(row=batch['row'])
  grads, out = _accumulate(recipe, state, teacher_variables, view, index, key)
  metrics = {'loss': out.loss, **out.metrics}
  stats = out.batch_stats, out.peer_stats
  averaged = jax.lax.pmean((grads, stats, metrics), AXIS)
  state, metrics = _update(recipe, state, *averaged)
  if out.memory is not None:
    state = dataclasses.replace(state, memory=out.memory)
  if recipe.average:
    state = _average(recipe, recipe.average, state, view.image)
  return state, metrics


def _accumulate(
  recipe: Recipe,
  state: TrainState,
  teacher_variables: PyTree,
  view: Batch,
  index: Array,
  key: Array,
) -> tuple[PyTree, LossOutput]:
  """Returns the gradient over a batch, a part of it at a time."""
  number = recipe.accumulate
  if number == 1:
    return _solve(recipe, state, teacher_variables, view, index, key)

  def add(carry, part):
    state, total = carry
    view, index = part
    grads, out = _solve(recipe, state, teacher_variables, view, index, key)
    total = jax.tree.map(lambda t, g: t + g / number, total, grads)
    state = dataclasses.replace(
      state,
      batch_stats=out.batch_stats,
      peer_stats=state.peer_stats if out.peer_stats is None else out.peer_stats,
      memory=state.memory if out.memory is None else out.memory,
    )
    return (state, total), (out.loss, out.metrics)

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  parts = jax.tree.map(
    lambda x: x.reshape(number, -1, *x.shape[1:]), (view, index)
  )
  (state, grads), found = jax.lax.scan(add, (state, zeros), parts)
  loss, metrics = jax.tree.map(lambda x: x.mean(axis=0), found)
  return grads, LossOutput(
    loss, state.batch_stats, metrics, state.memory, state.peer_stats
  )


def _solve(
  recipe: Recipe,
  state: TrainState,
  teacher_variables: PyTree,
  view: Batch,
  index: Array,
  key: Array,
) -> tuple[PyTree, LossOutput]:
  """Solves the inner problem, then takes the gradient of the outer one."""
  draws = image_keys(jax.random.fold_in(key, _DRAW), index)
  attacked = _context(
    recipe, state, state.params, teacher_variables, recipe.attack_mode
  )._replace(rng=draws)
  rng = image_keys(jax.random.fold_in(key, _ATTACK), index)
  adv = recipe.method.perturb(rng, attacked, view, recipe.maximize)
  adv = jax.lax.stop_gradient(adv)

  def loss_fn(params):
    ctx = _context(recipe, state, params, teacher_variables, 'train')
    out = recipe.method.loss(ctx._replace(rng=draws), view, adv)
    return out.loss, out

  return recipe.gradient(
    jax.grad(loss_fn, has_aux=True), state.params, state.step
  )


def _label(
  recipe: Recipe, teacher_variables: PyTree, image: Array, label: Array
) -> Array:
  """Replaces labels of -1 by the teacher's, as Carmon et al. 2019."""
  output = recipe.teachers[ROBUST](
    teacher_variables[ROBUST], to_float(image), 'eval'
  )
  return jnp.where(label < 0, output.logits.argmax(-1), label)


def _context(
  recipe: Recipe,
  state: TrainState,
  params: PyTree,
  teacher_variables: PyTree,
  mode: str,
) -> Context:
  """Binds weights to all networks; `models.forward` names the modes."""

  def student(image: Array, batch_stats: PyTree = state.batch_stats) -> Output:
    variables = {'params': params['student'], 'batch_stats': batch_stats}
    return recipe.student(variables, image, mode)

  def peer(image: Array, batch_stats: PyTree = state.peer_stats) -> Output:
    assert recipe.peer is not None
    variables = {'params': params['peer'], 'batch_stats': batch_stats}
    return recipe.peer(variables, image, mode)

  def no_teacher(image: Array) -> Output:
    raise ValueError('this method was built without a teacher')

  teachers = {
    name: functools.partial(_ask, forward, teacher_variables[name])
    for name, forward in recipe.teachers.items()
  }
  return Context(
    student,
    teachers.get(ROBUST, no_teacher),
    params['heads'],
    progress=state.step / recipe.total_steps,
    teachers=teachers,
    peer=peer if recipe.peer else None,
    memory=state.memory,
  )


def _ask(forward: Callable, variables: PyTree, image: Array) -> Output:
  """A teacher's answer: by frozen weights, and by its running averages."""
  return forward(jax.lax.stop_gradient(variables), image, 'eval')


def _update(
  recipe: Recipe,
  state: TrainState,
  grads: PyTree,
  stats: tuple[PyTree, PyTree],
  metrics: dict[str, Array],
) -> tuple[TrainState, dict[str, Array]]:
  """Applies averaged gradients."""
  updates, opt_state = recipe.tx.update(grads, state.opt_state, state.params)
  state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=cast(PyTree, optax.apply_updates(state.params, updates)),
    batch_stats=stats[0],
    peer_stats=state.peer_stats if stats[1] is None else stats[1],
    opt_state=opt_state,
  )
  return state, {**metrics, 'grad_norm': optax.tree.norm(grads)}


def _average(
  recipe: Recipe, average: Average, state: TrainState, image: Array
) -> TrainState:
  """Moves the averaged weights, and their running averages if they have own.

  These come from passing the averaged network over the clean images of each
  step, instead of one more epoch over them at the end.
  """
  done = state.step - 1
  params = average.update(state.ema_params, state.params['student'], done)
  stats = state.ema_stats
  if average.own_stats:
    variables = {'params': params, 'batch_stats': stats}
    own = recipe.student(variables, image, 'train').batch_stats
    stats = average.started(jax.lax.pmean(own, AXIS), state.batch_stats, done)
  return dataclasses.replace(state, ema_params=params, ema_stats=stats)
