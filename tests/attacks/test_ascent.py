"""The ascent loop: projection, starts, direction, path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks.ascent import ascent, direction, project, start
from jax_robust_kd.attacks.packing import check_inside
from jax_robust_kd.core import image_keys

IMAGE = np.random.default_rng(0).uniform(size=(6, 5, 4, 3)).astype(np.float32)
KEYS = image_keys(jax.random.key(0), jnp.arange(6))
NORMS = [('linf', 0.1), ('l2', 0.5)]


@pytest.mark.parametrize('norm,epsilon', NORMS)
@pytest.mark.parametrize('init', ['zero', 'uniform', 'gaussian'])
def test_start_is_inside(norm, epsilon, init):
  first = np.asarray(start(KEYS, IMAGE, norm, epsilon, init))
  check_inside(first, IMAGE.astype(np.float64), norm, epsilon)
  assert (init == 'zero') == np.array_equal(first, IMAGE)


def test_uniform_start_fills_the_ball():
  middle = jnp.full((400, 2, 2, 1), 0.5)
  keys = image_keys(jax.random.key(1), jnp.arange(400))
  delta = np.asarray(start(keys, middle, 'linf', 0.1, 'uniform')) - 0.5
  assert abs(delta.mean()) < 0.005
  assert delta.min() < -0.098 and delta.max() > 0.098
  delta = np.asarray(start(keys, middle, 'l2', 0.1, 'uniform')) - 0.5
  length = np.sqrt((delta**2).sum(axis=(1, 2, 3)))
  # Uniform in a ball of dimension 4: E[r] = 4/5 of the radius.
  assert abs(length.mean() - 0.08) < 0.002


def test_gaussian_start_has_the_fields_scale():
  delta = np.asarray(start(KEYS, IMAGE, 'linf', 0.1, 'gaussian')) - IMAGE
  assert 0.0005 < delta.std() < 0.0015


@pytest.mark.parametrize('norm,epsilon', NORMS)
def test_projection_of_far_points_is_inside_and_near_points_stay(norm, epsilon):
  rng = np.random.default_rng(1)
  far = IMAGE + rng.normal(size=IMAGE.shape).astype(np.float32)
  check_inside(
      np.asarray(project(far, IMAGE, norm, epsilon)),
      IMAGE.astype(np.float64), norm, epsilon,
  )  # fmt: skip
  near = np.clip(IMAGE + 0.001, 0, 1)
  np.testing.assert_allclose(
    project(near, IMAGE, norm, epsilon), near, atol=1e-6
  )


def test_direction_has_length_one_and_zero_stays_zero():
  grad = jnp.asarray(IMAGE - 0.5)
  assert set(np.unique(direction(grad, 'linf'))) <= {-1.0, 0.0, 1.0}
  unit = direction(grad, 'l2')
  np.testing.assert_allclose(
    jnp.sqrt(jnp.sum(unit**2, axis=(1, 2, 3))), 1.0, rtol=1e-5
  )
  assert not np.any(direction(jnp.zeros((2, 3, 3, 1)), 'l2'))


def run(loss_fn, norm='linf', epsilon=0.1, steps=10, init='zero', step=0.03):
  return ascent(
      KEYS, loss_fn, IMAGE, norm=norm, epsilon=epsilon, step_size=step,
      num_steps=steps, init=init,
  )  # fmt: skip


@pytest.mark.parametrize('norm,epsilon', NORMS)
def test_every_iterate_is_inside_and_the_last_is_adv(norm, epsilon):
  loss_fn = lambda x: jnp.sum(jnp.sin(9 * x), axis=(1, 2, 3))  # noqa: E731
  out = run(loss_fn, norm, epsilon, init='uniform', step=epsilon / 3)
  assert out.path.shape == (10, *IMAGE.shape)
  for iterate in np.asarray(out.path):
    check_inside(iterate, IMAGE.astype(np.float64), norm, epsilon)
  np.testing.assert_array_equal(out.path[-1], out.adv)


def test_linear_loss_reaches_the_corner_of_the_ball():
  weight = np.random.default_rng(2).normal(size=IMAGE.shape)
  out = run(lambda x: jnp.sum(weight * x, axis=(1, 2, 3)))
  corner = np.clip(IMAGE + 0.1 * np.sign(weight), 0, 1)
  np.testing.assert_allclose(out.adv, corner, atol=1e-6)


def test_linear_loss_reaches_the_pole_of_the_l2_ball():
  middle = jnp.full((6, 5, 4, 3), 0.5)
  weight = np.random.default_rng(2).normal(size=IMAGE.shape)
  out = ascent(
      KEYS, lambda x: jnp.sum(weight * x, axis=(1, 2, 3)), middle, norm='l2',
      epsilon=0.3, step_size=0.1, num_steps=5, init='zero',
  )  # fmt: skip
  unit = weight / np.sqrt((weight**2).sum(axis=(1, 2, 3), keepdims=True))
  np.testing.assert_allclose(out.adv, 0.5 + 0.3 * unit, atol=1e-5)


def test_the_first_step_equals_fgsm_by_hand():
  loss_fn = lambda x: jnp.sum(jnp.sin(9 * x), axis=(1, 2, 3))  # noqa: E731
  out = run(loss_fn, steps=1, step=0.1)
  by_hand = np.clip(IMAGE + 0.1 * np.sign(9 * np.cos(9 * IMAGE)), 0, 1)
  np.testing.assert_allclose(out.adv, by_hand, atol=1e-6)


def test_no_gradient_flows_through_the_attack():
  def total(scale):
    return run(lambda x: scale * jnp.sum(x**2, axis=(1, 2, 3))).adv.sum()

  assert float(jax.grad(total)(1.0)) == 0.0


def test_an_image_has_the_same_noise_in_any_batch():
  noise = partial(start, norm='linf', epsilon=0.1, init='uniform')
  whole = noise(KEYS, IMAGE)
  part = noise(KEYS[2:4], IMAGE[2:4])
  np.testing.assert_array_equal(whole[2:4], part)
