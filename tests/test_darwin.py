"""DARWIN's points, branches, targets and weights over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_methods import CLEAN, TARGET
from test_methods_paths import (
  DARWIN,
  PATHS,
  WEIGHTS,
  attacked,
  context,
  loss_of,
  run,
)

from jax_robust_kd.core import Batch, Context, Output
from jax_robust_kd.methods import METHODS

RNG = np.random.default_rng(2)


@pytest.mark.parametrize(
  'number,kept', [(0, range(10)), (1, [9]), (3, [3, 6, 9]), (12, range(10))]
)
def test_darwin_keeps_points_evenly_and_the_last(number, kept):
  adv, _ = attacked(METHODS['darwin'](num_points=number), context())
  assert adv.keys() == {'untargeted', 'targeted'}
  for path in adv.values():
    assert path[:, 0, 0, 0, 0].tolist() == list(kept)


def test_darwin_makes_only_the_branches_that_count():
  assert attacked(METHODS['darwin'](b=0.0), context())[0].keys() == {
    'untargeted'
  }
  assert attacked(METHODS['darwin'](b=1.0), context())[0].keys() == {'targeted'}


def goals(rule, label, classes=10):
  batch = Batch(jnp.zeros((len(label), 1, 1, 1)), jnp.eye(classes)[label])
  logits = jnp.asarray(RNG.normal(size=(len(label), classes)))
  keys = jax.random.split(jax.random.key(0), len(label))
  ctx = Context(None, lambda image: Output(logits, {}, {}), {}, 0.0, rng=keys)
  return DARWIN.TARGETS[rule](ctx, batch, jnp.asarray(label)), logits


@pytest.mark.parametrize('rule', sorted(DARWIN.TARGETS))
def test_darwin_never_aims_at_the_label(rule):
  label = RNG.integers(0, 10, 900)
  goal, logits = goals(rule, label)
  assert not np.any(goal == label)
  if rule == 'runner_up':
    best = np.where(np.eye(10, dtype=bool)[label], -np.inf, logits).argmax(1)
    np.testing.assert_array_equal(goal, best)
  else:
    steps = np.bincount((goal - label) % 10, minlength=10)[1:]
    assert np.all(abs(steps - 900 / 9) < 5 * (900 / 9) ** 0.5)


def test_darwin_aims_at_classes_of_the_batch():
  label = np.array([3, 3, 5, 8] * 50)
  assert set(np.unique(goals('batch', label)[0])) == {3, 5, 8}
  alone = goals('batch', np.full(50, 3))[0]
  assert not np.any(alone == 3)


def test_darwin_weighs_by_the_maximum_over_all_devices():
  """Two devices with half of the batch each find the loss of the whole."""
  method = METHODS['darwin'](b=0.0)
  whole = run('darwin', method, WEIGHTS).loss
  halves = [jnp.reshape(x, (2, 3, *x.shape[1:])) for x in (CLEAN, TARGET)]
  paths = jnp.moveaxis(jnp.reshape(PATHS[0], (3, 2, 3, 2, 2, 1)), 1, 0)
  parts = loss_of(method, WEIGHTS, *halves, {'untargeted': paths}).loss
  np.testing.assert_allclose(parts.mean(), whole, rtol=1e-5)
  assert abs(parts[0] - parts[1]) > 1e-3 * whole
