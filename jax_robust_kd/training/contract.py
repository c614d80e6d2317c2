"""What every method must do, checked by one call on tiny networks."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd import data
from jax_robust_kd.config import base_config
from jax_robust_kd.core import AXIS, Method, PyTree
from jax_robust_kd.training import build
from jax_robust_kd.training.step import train_step

_STEPS = 15  # on the same batch


def check_method(method: Method) -> None:
  """Checks a method of one's own, in half a minute.

  It trains on two devices from the middle of a run on, where no term waits for
  its begin.

  Args:
    method: to be checked.

  Raises:
    AssertionError: a number is not finite, no gradient reaches a trained
      weight, the devices disagree, or the loss does not fall on the batch that
      it is trained on.

  Examples:
    >>> from jax_robust_kd import methods
    >>> check_method(methods.kd())
  """
  step, start, teachers, batch = _small(method)
  step = jax.jit(on_one_device(step))
  try:
    state, metrics = step(start, teachers, batch)
  except ValueError as error:
    if 'out_axes' not in str(error):
      raise
    raise AssertionError(
      'what leaves the step differs between devices; hand on what `gather` or '
      f'`lax.pmean` gives: {error}'
    ) from error
  _check(
    'a number is not finite',
    jax.tree.map(np.isfinite, (state.params, state.memory, metrics)),
  )
  moved = jax.tree.map(lambda a, b: np.any(a != b), start.params, state.params)
  _check('no gradient reaches a trained weight', moved)
  losses = []
  for _ in range(_STEPS):
    # What it remembers moves the goal, so that is kept as it was.
    new, metrics = step(start, teachers, batch)
    losses.append(float(metrics['loss']))
    start = new.replace(memory=start.memory, step=start.step)
  if not np.mean(losses[-3:]) < losses[0]:
    raise AssertionError(f'the loss does not fall: {losses}')


def _check(sentence: str, holds: PyTree) -> None:
  """Raises with the paths of the leaves that do not hold everywhere."""
  paths = jax.tree_util.tree_leaves_with_path(holds)
  wrong = [jax.tree_util.keystr(path) for path, x in paths if not np.all(x)]
  if wrong:
    raise AssertionError(f'{sentence}: {", ".join(wrong)}')


def _small(method: Method) -> tuple[Callable, PyTree, PyTree, dict]:
  """Returns a step, its state, the teachers' weights and a batch."""
  c = base_config('digits')
  c.student.width = 4
  c.data.batch_size = 16
  c.train_attack.num_steps = 2
  c.optimizer.update(schedule='constant', learning_rate=0.05, nesterov=False)
  c.optimizer.update(epochs=25, warmup_epochs=0.0)
  dataset = data.load('digits')
  teachers = {}
  for c.seed, name in enumerate(method.teachers, 1):
    drawn = build.init_network(c, dataset)
    # As sure of itself as a trained one.
    sure = jax.tree.map(lambda x: 10 * x if x.ndim == 2 else x, drawn.variables)
    teachers[name] = drawn._replace(variables=sure)
  c.seed = 0
  networks = build.Networks(
    build.init_network(c, dataset),
    teachers,
    build.init_network(c, dataset, build.make_peer) if method.peer else None,
  )
  recipe, _ = build.make_recipe(c, networks, dataset, steps_per_epoch=4)
  recipe = recipe._replace(method=method)
  start: PyTree = build.make_state(c, recipe, networks, dataset)
  batches = data.train_batches(
    dataset.train, batch_size=16, seed=0, start_step=0, num_local_devices=2
  )
  return (
    partial(train_step, recipe),
    start.replace(step=jnp.asarray(recipe.total_steps // 2, jnp.int32)),
    {name: teacher.variables for name, teacher in teachers.items()},
    next(batches),
  )


def on_one_device(step: Callable) -> Callable:
  """Maps a step over [devices, B, ...]; raises where devices would disagree."""
  return jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name=AXIS)
