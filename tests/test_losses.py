"""Losses against values computed by hand and by NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 4)).astype(np.float32) * 3
OTHER = RNG.normal(size=(5, 4)).astype(np.float32) * 3


def softmax(z):
  e = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def test_cross_entropy_is_minus_log_p_of_the_label():
  target = np.eye(4)[[0, 1, 2, 3, 0]]
  expected = -np.log(softmax(LOGITS)[np.arange(5), [0, 1, 2, 3, 0]])
  np.testing.assert_allclose(
    losses.cross_entropy(LOGITS, target), expected, rtol=1e-5
  )


def test_cross_entropy_by_hand():
  # Two equal logits: each class has 1/2, whatever the target: log 2.
  value = losses.cross_entropy(jnp.array([[7.0, 7.0]]), jnp.array([[0.3, 0.7]]))
  np.testing.assert_allclose(value, [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_kl_divergence_is_summed_over_classes_per_example(temperature):
  p, q = softmax(OTHER / temperature), softmax(LOGITS / temperature)
  expected = (p * np.log(p / q)).sum(axis=1)
  value = losses.kl_divergence(LOGITS, OTHER, temperature)
  assert value.shape == (5,)
  np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_kl_divergence_by_hand():
  # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 log(2/3) + 1/2 log 2.
  value = losses.kl_divergence(
    jnp.log(jnp.array([[0.75, 0.25]])), jnp.zeros((1, 2))
  )
  np.testing.assert_allclose(value, [0.5 * np.log(4 / 3)], rtol=1e-5)


def test_kl_divergence_gradient_reaches_both_sides():
  total = lambda a, b: losses.kl_divergence(a, b).sum()  # noqa: E731
  left, right = jax.grad(total, argnums=(0, 1))(LOGITS, OTHER)
  np.testing.assert_allclose(left, softmax(LOGITS) - softmax(OTHER), atol=1e-5)
  assert float(jnp.abs(right).max()) > 1e-2


def test_losses_stay_finite_at_extreme_logits():
  extreme = jnp.array([[1e4, -1e4, 0.0, 3.0]])
  assert np.isfinite(losses.kl_divergence(extreme, -extreme)).all()
  assert np.isfinite(losses.cross_entropy(extreme, jnp.eye(4)[:1])).all()


def test_margin_is_positive_exactly_when_wrong():
  label = np.array([0, 1, 2, 3, 0])
  wrong = np.argmax(LOGITS, axis=1) != label
  value = np.asarray(losses.margin(LOGITS, label))
  np.testing.assert_array_equal(value > 0, wrong)
  by_hand = losses.margin(jnp.array([[1.0, 5.0, 2.0]]), jnp.array([2]))
  assert float(by_hand[0]) == 3.0
