"""The model's outputs, on models by hand."""

from helpers.evidence import NEVER, brightness, falls_at, grey, runs, verdict
import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.checks.model import Outcome
from jax_robust_kd.checks.outputs import (
  CLEAN,
  DETERMINISM,
  LOGITS,
  PRECISION,
)


def test_precision_is_tried():
  def careless(image):
    exact = jax.config.jax_default_matmul_precision == 'highest'
    return brightness(image if exact else image - 0.01)

  model = grey([0.6, 0.7, 0.2, 0.3])
  model = model._replace(apply=jax.tree_util.Partial(careless))
  correct = np.ones(4, bool)
  still = runs(falls_at([NEVER] * 4))
  still.restarts[0] = still.restarts[0]._replace(adv=model.image)

  def precision(adv):
    outcomes = {'a': Outcome(correct, adv)}
    return verdict(PRECISION, model=model, runs=still, outcomes=outcomes)

  assert precision(model.image).level == 'green'
  near = np.where(model.image > 0.5, 0.505, model.image).astype(np.float32)
  found = precision(near)
  assert found.level == 'red' and found.value['highest'] == 100
  assert found.value['default'] == 50


def test_logits_that_are_not_finite():
  def broken_model(image):
    return brightness(image).at[0, 0].set(jnp.nan)

  model = grey([0.2, 0.8])._replace(apply=jax.tree_util.Partial(broken_model))
  assert verdict(LOGITS, model=model).level == 'red'
  assert verdict(DETERMINISM, model=model).level == 'red', (
    'nan must not be green'
  )
  assert verdict(LOGITS, model=grey([0.2, 0.8])).level == 'green'


def test_guessing_is_red():
  model = grey([0.2, 0.3, 0.8, 0.9])
  assert verdict(CLEAN, model=model).level == 'green'
  wrong = model._replace(label=1 - model.label)
  assert verdict(CLEAN, model=wrong).level == 'red'
