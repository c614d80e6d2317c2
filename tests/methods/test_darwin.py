"""DARWIN's points, branches, targets and weights over devices."""

from functools import partial

from helpers.equations import CLEAN, TARGET
from helpers.paths import (
  DARWIN,
  PATHS,
  WEIGHTS,
  attacked,
  context,
  loss_of,
  run,
)
from helpers.steps import small_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.core import AXIS, Batch, Context, Output
from jax_robust_kd.methods import METHODS
from jax_robust_kd.planning.flops import count_flops, jaxprs_of
from jax_robust_kd.training.step import train_step

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


def on_one_device(setup, **changes):
  step = partial(train_step, setup.recipe._replace(**changes))
  return jax.vmap(step, (None, None, 0), None, axis_name=AXIS)


def count(jaxpr):
  """Returns the number of equations of a program, those inside others too."""
  inner = (
    j
    for eqn in jaxpr.eqns
    for value in eqn.params.values()
    for j in jaxprs_of(value)
  )
  return len(jaxpr.eqns) + sum(map(count, inner))


def test_darwin_does_not_grow_with_its_points(digits):
  """The program of 6 points a path is that of 2, but for lengths of loops."""
  sizes, work = [], []
  for number in (2, 6):
    method = METHODS['darwin'](num_points=number)
    setup = small_step(method, digits)
    attack = partial(setup.recipe.maximize, num_steps=6)
    step = on_one_device(setup, maximize=attack)
    args = setup.state, setup.teacher_variables, setup.batch
    sizes.append(count(jax.make_jaxpr(step)(*args).jaxpr))
    work.append(count_flops(step, *args))
  assert sizes[0] == sizes[1] > 100
  assert work[1] > 1.5 * work[0]  # yet all points are passed


@pytest.mark.parametrize('target', ['uniform', 'batch'])
def test_darwin_aims_and_weighs_by_one_draw(target, digits, monkeypatch):
  """The class of the attack is that of the loss, and another one later."""
  rule, drawn = DARWIN.TARGETS[target], []

  def noting(*args):
    drawn.append(rule(*args))
    return drawn[-1]

  monkeypatch.setitem(DARWIN.TARGETS, target, noting)
  method = METHODS['darwin'](target=target)

  def perturb(*args):
    return {**method.perturb(*args), 'aim': drawn.pop()}

  def loss(ctx, batch, adv):
    out = method.loss(ctx, batch, adv)
    found = jax.lax.all_gather((adv['aim'], drawn.pop(), batch.target), AXIS)
    return out._replace(metrics={'aims': found})

  watched = method._replace(perturb=perturb, loss=loss)
  setup = small_step(watched, digits)

  @jax.jit  # all but the draws is dead code here
  def aims(state):
    step = on_one_device(setup)
    return step(state, setup.teacher_variables, setup.batch)[1]['aims']

  attacked, weighed, label = aims(setup.state)
  np.testing.assert_array_equal(attacked, weighed)
  assert not np.any(attacked == np.argmax(label, axis=-1))
  later = aims(setup.state.replace(step=setup.state.step + 1))
  np.testing.assert_array_equal(*later[:2])
  assert np.any(later[0] != attacked)
