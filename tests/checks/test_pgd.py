"""PGD with its trace, noise, and that they compile once."""

from helpers.evidence import brightness, grey, verdict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks import Budget
from jax_robust_kd.checks import pgd
from jax_robust_kd.checks.images import BOX
from jax_robust_kd.checks.model import Outcome


def settings(**changes):
  both = dict(norm='linf', epsilon=0.1, steps=4, max_steps=8, seed=0)
  return {**both, **changes}


def test_trace_of_one_step_by_hand():
  trace = pgd.run_pgd(
      grey([0.45, 0.3, 0.9]), **settings(steps=1, step_size=0.1, random=False)
  )  # fmt: skip
  assert trace.correct.all()
  # Logits are 9 (m - 1/2) and its negative, the margin 18 times the way.
  ways = np.array([[-0.05, 0.05], [-0.2, -0.1], [-0.4, -0.3]])
  np.testing.assert_allclose(trace.margin[:, :2], 18 * ways, rtol=1e-4)
  np.testing.assert_allclose(
    trace.loss[:, :2], np.log1p(np.exp(trace.margin[:, :2])), rtol=1e-4
  )
  assert np.all(trace.margin[:, 2:] == -np.inf)
  np.testing.assert_array_equal(pgd.survives(trace), [0, 1, 1])
  np.testing.assert_allclose(trace.adv[0], 0.55, rtol=1e-5)
  assert not trace.flat.any()


def test_a_gradient_that_is_not_finite_is_none():
  """That of one black pixel; the second image has none."""
  model = grey([0.2, 0.3])
  model.image[0, 0, 0] = 0

  def root(image):
    return brightness(image) + jnp.sqrt(image[:, 0, 0])

  found = model._replace(apply=jax.tree_util.Partial(root))
  flat = pgd.run_pgd(found, **settings(step_size=0.1, random=False)).flat
  np.testing.assert_array_equal(flat[:, 0], [True, False])


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_pgd_stays_in_the_ball_and_reaches_its_edge(norm):
  model = grey([0.02, 0.3, 0.5, 0.98])
  epsilon = {'linf': 0.1, 'l2': 0.4, 'l1': 1.6}[norm]
  changes = dict(norm=norm, epsilon=epsilon, steps=8)
  adv = pgd.run_pgd(model, **settings(**changes)).adv
  outcomes = {'pgd': Outcome(np.ones(4, bool), adv)}
  found = verdict(
    BOX,
    model=model,
    budget=Budget(norm, epsilon, epsilon / 4),
    scored=((model, outcomes),),
  )
  assert found.level == 'green', found
  # All norms allow the mean to move by 0.1, and PGD finds it.
  np.testing.assert_allclose(
    np.abs(adv - model.image).mean(axis=(1, 2, 3)), 0.1, atol=0.02
  )


def test_radius_and_steps_do_not_compile_again():
  model = grey([0.2, 0.8])
  traced = 0

  def counting(image):
    nonlocal traced
    traced += 1
    return brightness(image)

  model = model._replace(apply=jax.tree_util.Partial(counting))
  pgd.run_pgd(model, **settings())
  before = traced
  pgd.run_pgd(model, **settings(epsilon=0.3, steps=7, random=False, seed=1))
  assert traced == before > 0


def test_noise_breaks_only_what_is_near():
  model = grey([0.499, 0.2, 0.501, 0.9])
  correct = pgd.survives_noise(model, 'linf', 0.1, 200, 0)
  np.testing.assert_array_equal(correct, [0, 1, 0, 1])
