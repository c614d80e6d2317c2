"""What every entry of METHODS must do; a new entry is tested without a test."""

from collections.abc import Callable
import functools
from typing import NamedTuple

from conftest import Setup, small_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import checkpoint, data, parallel
from jax_robust_kd.attacks.packing import check_inside
from jax_robust_kd.core import AXIS, image_keys
from jax_robust_kd.methods import METHODS
from jax_robust_kd.train_step import _context

pytestmark = pytest.mark.parametrize('name', sorted(METHODS))


class Built(NamedTuple):
  """A small step of a method, compiled once for all tests below."""

  setup: Setup
  step: Callable  # on one device; raises if an output was not averaged


@pytest.fixture(scope='module')
def build(digits):
  """Returns name -> Built."""

  @functools.cache
  def once(name: str) -> Built:
    setup = small_step(METHODS[name](), digits)
    step = jax.vmap(
      setup.step, in_axes=(None, None, 0), out_axes=None, axis_name=AXIS
    )
    return Built(setup, jax.jit(step))

  return once


def test_gradients_are_finite_and_reach_all_weights(name, build):
  setup, step = build(name)
  before = jax.tree.map(np.array, setup.teacher_variables)
  state, metrics = step(setup.state, setup.teacher_variables, setup.batch)
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), state.params, setup.state.params
  )
  assert all(np.isfinite(v) and v > 0 for v in jax.tree.leaves(moved)), moved
  assert all(np.isfinite(v) for v in metrics.values())
  stats = jax.tree.map(
    lambda a, b: bool(jnp.any(a != b)),
    state.batch_stats,
    setup.state.batch_stats,
  )
  assert all(jax.tree.leaves(stats)), 'running averages did not move'
  jax.tree.map(np.testing.assert_array_equal, before, setup.teacher_variables)


def test_adversarial_images_are_inside(name, build):
  setup = build(name).setup
  keys = image_keys(jax.random.key(0), jnp.arange(16))
  batch = {k: v[0] for k, v in setup.batch.items()}
  view = setup.recipe.augment(
    jax.random.key(1), batch['index'], batch['image'], batch['label']
  )
  ctx = _context(
      setup.recipe, setup.state, setup.state.params, setup.teacher_variables,
      'eval',
  )  # fmt: skip
  method = setup.recipe.method
  adv = jax.jit(
    lambda view: method.perturb(keys, ctx, view, setup.recipe.maximize)
  )(view)
  for images in jax.tree.leaves(adv):
    for one in np.asarray(images).reshape(-1, *view.image.shape):
      check_inside(one, np.asarray(view.image, np.float64), 'linf', 0.1)


def test_one_trace_and_several_devices_equal_one(name, build, digits):
  setup, single = build(name)
  traces = []

  def counting(*args):
    traces.append(1)
    return setup.step(*args)

  batches = data.train_batches(
    digits.train, batch_size=16, seed=0, start_step=0, num_local_devices=2
  )
  split = next(batches)
  expected, expected_metrics = single(
    setup.state, setup.teacher_variables, split
  )
  step = parallel.pmap_step(counting)
  teacher = parallel.replicate(setup.teacher_variables)
  state, metrics = step(parallel.replicate(setup.state), teacher, split)
  # BatchNorm is per device in both. Reductions differ by rounding, which
  # sign() may amplify in later steps, but not in the first one's loss.
  np.testing.assert_allclose(
    metrics['loss'], expected_metrics['loss'], rtol=1e-5
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    jax.tree.map(np.asarray, state.params),
    jax.tree.map(np.asarray, expected.params),
  )
  for _ in range(2):
    state, _ = step(state, teacher, next(batches))
  assert len(traces) == 1, 'the step was traced again'


def test_loss_falls_on_digits(name, build):
  setup, step = build(name)
  state, losses = setup.state, []
  for _ in range(15):  # the same batch: any method must learn it
    state, metrics = step(state, setup.teacher_variables, setup.batch)
    losses.append(float(metrics['loss']))
  assert np.mean(losses[-3:]) < losses[0], losses


def test_the_same_step_twice_is_bitwise_the_same(name, build):
  setup, step = build(name)
  args = setup.state, setup.teacher_variables, setup.batch
  jax.tree.map(np.testing.assert_array_equal, step(*args), step(*args))


def test_resume_is_bitwise(name, build, tmp_path):
  """Saved after a step and restored, the next step is bitwise the same."""
  setup, step = build(name)
  state, _ = step(setup.state, setup.teacher_variables, setup.batch)
  folder = checkpoint.open_folder(tmp_path, 'last', 1)
  checkpoint.save(folder, 1, jax.tree.map(np.array, state), {})
  checkpoint.wait(folder)
  found = checkpoint.restore(folder, setup.state)
  folder.close()
  assert found is not None
  after = step(state, setup.teacher_variables, setup.batch)
  resumed = step(found[0], setup.teacher_variables, setup.batch)
  jax.tree.map(np.testing.assert_array_equal, after, resumed)
