"""The difference-of-logits ratio against AutoAttack's reference program."""

from helpers import golden_digits
import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.losses import dlr, dlr_targeted, margin

GOLDEN = golden_digits.load()
LOGITS = jnp.asarray(GOLDEN['loss/logits'])
LABEL, TARGET = GOLDEN['loss/y'], GOLDEN['loss/t']


def test_reference_program_computes_the_same():
  np.testing.assert_allclose(dlr(LOGITS, LABEL), GOLDEN['loss/dlr'], atol=1e-6)
  np.testing.assert_allclose(
    dlr_targeted(LOGITS, LABEL, TARGET), GOLDEN['loss/dlr_t'], atol=1e-6
  )


def test_neither_shift_nor_scale_matters():
  other = 3 * LOGITS + 7
  np.testing.assert_allclose(dlr(other, LABEL), dlr(LOGITS, LABEL), rtol=1e-4)
  np.testing.assert_allclose(
    dlr_targeted(other, LABEL, TARGET),
    dlr_targeted(LOGITS, LABEL, TARGET),
    rtol=1e-4,
    atol=1e-6,
  )


def test_gradient_is_exactly_zero_where_the_label_is_third():
  order = jnp.argsort(-LOGITS, axis=1)
  gradient = jax.grad(lambda z, y: dlr(z, y).sum())
  np.testing.assert_array_equal(gradient(LOGITS, order[:, 2]), 0)
  second = gradient(LOGITS, order[:, 1])
  assert float(jnp.abs(second).max(axis=1).min()) > 0.01


def test_gradient_is_that_of_the_quotient():
  def quotient(z):
    top = jnp.sort(z)
    return (z[TARGET[0]] - z[LABEL[0]]) / (top[-1] - (top[-3] + top[-4]) / 2)

  by_hand = jax.grad(quotient)(LOGITS[0])
  value = jax.grad(
    lambda z: dlr_targeted(z[None], LABEL[:1], TARGET[:1]).sum()
  )(LOGITS[0])
  np.testing.assert_allclose(value, by_hand, rtol=1e-4, atol=1e-6)


def test_few_classes_have_the_margin_instead():
  label, target = jnp.array([0, 1]), jnp.array([1, 0])
  two, three, four = (LOGITS[:2, :k] for k in (2, 3, 4))
  np.testing.assert_array_equal(dlr(two, label), margin(two, label))
  np.testing.assert_array_equal(
    dlr_targeted(two, label, target), margin(two, label)
  )
  top = jnp.sort(three, axis=1)
  ratio = margin(three, label) / (top[:, 2] - top[:, 0])
  np.testing.assert_allclose(dlr(three, label), ratio, rtol=1e-6)
  difference = jnp.array([three[0, 1] - three[0, 0], three[1, 0] - three[1, 1]])
  np.testing.assert_array_equal(dlr_targeted(three, label, target), difference)
  top = jnp.sort(four, axis=1)
  ratio = difference / (top[:, 3] - (top[:, 1] + top[:, 0]) / 2)
  np.testing.assert_allclose(
    dlr_targeted(four, label, target), ratio, rtol=1e-5
  )
