"""What every entry of METHODS must do; a new entry is tested without a test."""

from conftest import small_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import data, parallel
from jax_robust_kd.core import AXIS, image_keys
from jax_robust_kd.evaluate import check_inside
from jax_robust_kd.methods import METHODS
from jax_robust_kd.train_step import _context

pytestmark = pytest.mark.parametrize('name', sorted(METHODS))


def on_one_device(step):
  """The step on one device; raises if an output was not averaged."""
  return jax.jit(
    jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name=AXIS)
  )


def test_gradients_are_finite_and_reach_all_weights(name, digits):
  setup = small_step(METHODS[name](), digits)
  before = jax.tree.map(np.array, setup.teacher_variables)
  state, metrics = on_one_device(setup.step)(
    setup.state, setup.teacher_variables, setup.batch
  )
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


def test_adversarial_images_are_inside(name, digits):
  setup = small_step(METHODS[name](), digits)
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


def test_one_trace_per_step_and_pmap_equals_vmap(name, digits):
  traces = []
  method = METHODS[name]()
  augment = small_step(method, digits).recipe.augment

  def counting(*args):
    traces.append(1)
    return augment(*args)

  setup = small_step(method, digits, augment=counting)
  step = parallel.pmap_step(setup.step)
  single = on_one_device(setup.step)
  batches = data.train_batches(
    digits.train, batch_size=16, seed=0, start_step=0, num_local_devices=2
  )
  split = next(batches)
  expected, expected_metrics = single(
    setup.state, setup.teacher_variables, split
  )
  teacher = parallel.replicate(setup.teacher_variables)
  state, metrics = step(parallel.replicate(setup.state), teacher, split)
  # BatchNorm is per device in both; reductions differ by rounding, which
  # sign() may amplify in later steps but not in the first one's loss.
  np.testing.assert_allclose(
    metrics['loss'], expected_metrics['loss'], rtol=1e-5
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    jax.tree.map(np.asarray, state.params),
    jax.tree.map(np.asarray, expected.params),
  )
  count = len(traces)
  for _ in range(3):
    state, _ = step(state, teacher, next(batches))
  assert len(traces) == count, 'the step was traced again'


def test_loss_falls_on_digits(name, digits):
  setup = small_step(METHODS[name](), digits, batch_size=32)
  step = on_one_device(setup.step)
  state, losses = setup.state, []
  for _ in range(12):  # the same batch: any method must learn it
    state, metrics = step(state, setup.teacher_variables, setup.batch)
    losses.append(float(metrics['loss']))
  assert min(losses[-3:]) < losses[0], losses


def test_the_same_step_twice_is_bitwise_the_same(name, digits):
  setup = small_step(METHODS[name](), digits)
  step = on_one_device(setup.step)
  args = setup.state, setup.teacher_variables, setup.batch
  jax.tree.map(np.testing.assert_array_equal, step(*args), step(*args))
