"""Geometry of the l_1 ball in the box: projection and sparse steps."""

from helpers import golden_digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks import l1

GOLDEN = golden_digits.load()


def nearest(image, delta, radius) -> np.ndarray:
  """One image's projection in float64: the threshold from its breakpoints."""
  image, delta = np.float64(image), np.float64(delta)
  size, room = np.abs(delta), np.where(delta > 0, 1 - image, image)

  def shrunk(threshold):
    return np.clip(size - threshold, 0, room)

  breaks = np.unique([0.0, *size.ravel(), *(size - room).clip(0).ravel()])
  sums = np.array([shrunk(b).sum() for b in breaks])
  # The sum falls linearly between breakpoints.
  threshold = np.interp(-radius, -sums, breaks) if sums[0] > radius else 0.0
  return image + np.sign(delta) * shrunk(threshold)


@pytest.mark.parametrize('radius', ['0.5', '2.0', '10.0'])
def test_projection_is_the_nearest_point(radius):
  image, delta = GOLDEN['l1proj/x'], GOLDEN['l1proj/delta']
  point = np.asarray(jax.jit(l1.project)(image, delta, float(radius)))
  exact = np.stack(
    [nearest(x, d, float(radius)) for x, d in zip(image, delta, strict=True)]
  )
  np.testing.assert_allclose(point, exact, atol=1e-6)
  np.testing.assert_array_equal(point == image, exact == image)
  assert 0.3 < np.mean(point == image) < 1
  assert point.min() >= 0 and point.max() <= 1
  length = np.abs(np.float64(point) - image).sum((1, 2, 3))
  assert length.max() <= float(radius) + 1e-6
  # Running sums in float32 leave the reference 7.5e-6 from the exact point.
  reference = image + delta + GOLDEN[f'l1proj/{radius}']
  np.testing.assert_allclose(point, reference, atol=1e-5)


def test_points_of_ball_and_box_stay():
  image = GOLDEN['x']
  rng = np.random.default_rng(0)
  inside = np.float32(image + 0.02 * (rng.random(image.shape) - image))
  point = l1.project(image, inside - image, 10.0)
  np.testing.assert_allclose(point, inside, atol=1e-6)
  assert np.abs(point - image).max() > 1e-3
  np.testing.assert_array_equal(l1.project(image, 0 * image, 0.5), image)


def test_rounding_errors_are_no_changes():
  image = jnp.full((1, 2, 2, 1), 0.25)
  delta = jnp.array([1e-7, -1e-7, 1e-3, 0.0]).reshape(1, 2, 2, 1)
  point = l1.project(image, delta, 1.0)
  assert float(l1.support(point - image)[0]) == 1.0


def test_sparse_direction_by_hand():
  gradient = jnp.array([3.0, -5.0, 1.0, 0.0, 2.0, -4.0]).reshape(1, 2, 3, 1)
  # Two thirds of the changed pixels, rounded up; at least one.
  for changed, expected in (
    (4.0, [1, -1, 0, 0, 0, -1]),
    (2.0, [0, -1, 0, 0, 0, -1]),
    (0.0, [0, -1, 0, 0, 0, 0]),
  ):
    direction = l1.sparse_direction(gradient, jnp.array([changed]))
    expected = np.array(expected) / np.abs(expected).sum()
    np.testing.assert_allclose(direction.ravel(), expected, atol=1e-6)
  nowhere = l1.sparse_direction(0 * gradient, jnp.array([3.0]))
  np.testing.assert_array_equal(nowhere, 0)
