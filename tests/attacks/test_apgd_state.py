"""Auto-PGD's checkpoints by hand: two images, no network."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.attacks.apgd_schedule import Row
from jax_robust_kd.attacks.apgd_state import (
  Evaluation,
  begin,
  check_progress,
  check_sparsity,
  record,
)
from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.stepwise import Problem
from jax_robust_kd.core import image_keys

IMAGE = jnp.full((2, 4, 5, 1), 0.5)
KEYS = image_keys(jax.random.key(0), jnp.arange(2))


def seen(loss, wrong=(False, False)) -> Evaluation:
  """The gradient carries the loss, to be told apart later."""
  loss = jnp.asarray(loss, jnp.float32)
  gradient = jnp.ones_like(IMAGE) * loss[:, None, None, None]
  return Evaluation(loss, gradient, jnp.asarray(wrong))


def problem_of(norm: str) -> Problem:
  label = jnp.zeros(2, jnp.int32)
  budget = Budget(norm, 0.4, 0.0)
  return Problem(KEYS, lambda x: x, IMAGE, label, budget, jnp.int32(0))


def start(norm: str, loss, point=IMAGE):
  row = Row(1.0, True, 1.0, 0)
  return begin(problem_of(norm), row, point, seen(loss), jnp.zeros(2, int))


def row_with(window: int) -> Row:
  return Row(1.0, False, 0.75, window)


def test_best_loss_at_rest_halves_the_step_but_not_twice_in_a_row():
  state = start('linf', [5.0, 5.0])
  np.testing.assert_allclose(state.step_size, 0.8)
  sizes = []
  for _ in range(4):
    state = state._replace(rises=jnp.array([8, 8]))
    state = record(state, IMAGE + 0.1, seen([1.0, 6.0 + len(sizes)]))
    state = check_progress(row_with(10), state)
    sizes.append(np.asarray(state.step_size).tolist())
  # The first image's best loss stays 5: only every second checkpoint halves,
  # and not the first. The second image's best loss rises.
  expected = [[0.8, 0.8], [0.4, 0.8], [0.4, 0.8], [0.2, 0.8]]
  np.testing.assert_allclose(sizes, expected)


def test_too_few_rises_halve_the_step_and_lead_back_to_the_best_point():
  state = start('l2', [0.0, 0.0])
  for i, loss in enumerate([(1, 1), (2, 2), (3, 3), (4, 2)]):
    state = record(state, IMAGE + 0.01 * i, seen(loss))
  assert state.rises.tolist() == [4, 3]
  state = check_progress(row_with(0), state)
  np.testing.assert_allclose(state.step_size, 0.8)
  state = check_progress(row_with(4), state)
  np.testing.assert_allclose(state.step_size, [0.8, 0.4])
  np.testing.assert_allclose(state.point[:, 0, 0, 0], [0.53, 0.52])
  np.testing.assert_allclose(state.gradient[:, 0, 0, 0], [4.0, 3.0])
  assert state.rises.tolist() == [0, 0]
  # Where the last step started does not follow, nor does its loss.
  np.testing.assert_allclose(state.previous[:, 0, 0, 0], 0.52)
  np.testing.assert_allclose(state.last_loss, [4.0, 2.0])


def test_the_latest_misclassified_point_is_reported():
  state = start('linf', [0.0, 0.0])
  state = record(state, IMAGE + 0.1, seen([2.0, 2.0], (True, False)))
  state = record(state, IMAGE + 0.2, seen([1.0, 1.0], (True, False)))
  state = record(state, IMAGE + 0.3, seen([1.0, 1.0], (False, False)))
  assert state.fooled.tolist() == [True, False]
  np.testing.assert_allclose(state.adv[:, 0, 0, 0], [0.7, 0.5])
  np.testing.assert_allclose(state.best[:, 0, 0, 0], 0.6)


def test_l1_step_follows_the_number_of_changed_pixels():
  first = IMAGE.at[:, 0].add(0.02)  # five pixels of twenty
  fewer = first.at[0, 0, 0].set(0.5)  # four in the first image
  state = start('l1', [0.0, 0.0], first)
  np.testing.assert_allclose(state.step_size, 0.4)
  assert state.changed.tolist() == [5.0, 5.0]
  state = state._replace(step_size=jnp.array([0.1, 0.1]))
  state = record(state, fewer, seen([2.0, 2.0]))
  state = record(state, IMAGE, seen([1.0, 1.0]))
  state = check_sparsity(problem_of('l1'), row_with(4), state)
  assert state.changed.tolist() == [4.0, 5.0]
  np.testing.assert_allclose(state.step_size, [0.4, 0.1 / 1.5], rtol=1e-6)
  np.testing.assert_array_equal(state.point[0], fewer[0])
  np.testing.assert_array_equal(state.point[1], IMAGE[1])
  np.testing.assert_allclose(state.gradient[:, 0, 0, 0], [2.0, 1.0])
  for _ in range(4):
    state = check_sparsity(problem_of('l1'), row_with(4), state)
  np.testing.assert_allclose(state.step_size[1], 0.04, rtol=1e-6)
