"""MixACM's heads and blocks, and that it attacks nothing."""

from functools import partial

from helpers.paths import TEACHER_MAPS, WEIGHTS, run
from helpers.steps import network, small_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import AXIS, Output, UserError
from jax_robust_kd.methods import METHODS
from jax_robust_kd.planning.flops import jaxprs_of, step_cost
from jax_robust_kd.training.step import train_step


def test_mixacm_is_finite_where_it_has_no_direction():
  """Dead blocks, and a student whose maps are the teacher's."""
  for stem in (np.zeros(4), TEACHER_MAPS[0].ravel()):
    weights = np.concatenate([WEIGHTS[:12], stem, np.zeros(6), WEIGHTS[-6:]])
    method = METHODS['mixacm']()
    grad = jax.grad(lambda w: run('mixacm', method, w).loss)(
      jnp.asarray(weights)
    )
    assert np.all(np.isfinite(grad))


def outputs(*names, channels=2):
  features = {n: jnp.zeros((1, 2, 2, channels)) for n in names}
  return Output(
    jnp.zeros((1, 3)), {**features, 'pooled': jnp.zeros((1, 4))}, {}
  )


def test_mixacm_has_heads_only_where_channels_differ():
  wide = outputs('stem', 'stage1', channels=5)
  wide.features['stem'] = jnp.zeros((1, 4, 4, 2))
  init = METHODS['mixacm']().init_heads
  heads = init(jax.random.key(0), outputs('stem', 'stage1'), wide)
  assert {n: w.shape for n, w in heads.items()} == {'stage1': (2, 5)}


def test_mixacm_says_which_blocks_do_not_match():
  names = outputs('stem', 'stage1', 'stage2'), outputs('stem', 'stage1')
  with pytest.raises(UserError, match=r"stage2.*both have: \('stage1', 'stem'"):
    METHODS['mixacm']().init_heads(jax.random.key(0), *names)
  with pytest.raises(UserError, match=r"method.blocks=\('stage2',\)"):
    METHODS['mixacm'](blocks=('stage2',)).init_heads(jax.random.key(0), *names)
  some = METHODS['mixacm'](blocks=('stem', 'stage1'))
  assert some.init_heads(jax.random.key(0), *names) == {}


def loops(jaxpr):
  """Returns the loops of a program, by the name of their primitive."""
  found = []
  for eqn in jaxpr.eqns:
    found += [eqn.primitive.name] * (eqn.primitive.name in ('while', 'scan'))
    for value in eqn.params.values():
      for inner in jaxprs_of(value):
        found += loops(inner)
  return found


@pytest.fixture(scope='module')
def setup(digits):
  """A step of MixACM, with mixup as in its config."""
  mixup = data.make_augment(num_classes=10, mixup_alpha=1.0)
  return small_step(METHODS['mixacm'](), digits, make=network, augment=mixup)


def step_of(setup, name):
  """The same step of another method."""
  recipe = setup.recipe._replace(method=METHODS[name]())
  return partial(train_step, recipe)


def trace(setup, name, monkeypatch):
  """The jaxpr of a step, with the plain convolutions of an accelerator."""
  step = jax.vmap(step_of(setup, name), (None, None, 0), None, axis_name=AXIS)
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'default_backend', lambda: 'tpu')
    args = setup.state, setup.teacher_variables, setup.batch
    return jax.make_jaxpr(step)(*args).jaxpr


def test_mixacm_attacks_nothing(setup, monkeypatch):
  """No loop in its step; an attack is one."""
  assert not loops(trace(setup, 'mixacm', monkeypatch))
  assert loops(trace(setup, 'ard', monkeypatch)) == ['scan']


def test_mixacm_costs_what_kd_does(setup):
  flops = {
    name: step_cost(
      step_of(setup, name),
      setup.state,
      setup.teacher_variables,
      setup.recipe.student,
      (16, 8, 8, 1),
    )[1]
    for name in ('mixacm', 'kd')
  }
  assert setup.state.params['heads'], 'channels differ here'
  assert 1.0 < flops['mixacm'] / flops['kd'] < 1.3


@pytest.fixture(scope='module')
def compiled(digits):
  """Returns name -> the compiled step of a method on a tiny network."""
  mixup = data.make_augment(num_classes=10, mixup_alpha=1.0)
  tiny = small_step(METHODS['mixacm'](), digits, augment=mixup)

  def build(name):
    step = jax.vmap(step_of(tiny, name), (None, None, 0), None, axis_name=AXIS)
    args = tiny.state, tiny.teacher_variables, tiny.batch
    return jax.jit(step).lower(*args).compile()

  return {name: build(name) for name in ('mixacm', 'kd', 'ard')}


def test_mixacm_as_compiled_attacks_nothing(compiled):
  """Its loops are those of KD: the draws of mixup. ARD has its attack's too."""
  count = {n: p.as_text().count(' while(') for n, p in compiled.items()}
  assert count['mixacm'] <= count['kd'] < count['ard'], count


def test_mixacm_as_compiled_costs_what_kd_does(compiled):
  flops = {n: p.cost_analysis()['flops'] for n, p in compiled.items()}
  assert 0.9 < flops['mixacm'] / flops['kd'] < 1.3, flops
  assert flops['ard'] > 1.3 * flops['kd'], flops
