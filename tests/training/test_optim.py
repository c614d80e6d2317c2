"""Schedules and optimizers against values worked out by hand or in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_robust_kd import models
from jax_robust_kd.core import UserError
from jax_robust_kd.training import optim


def schedule(name, **changes):
  given = dict(
    learning_rate=0.1,
    total_steps=100,
    warmup_steps=0,
    milestones=(0.5, 0.75),
    decay=0.1,
  )
  return optim.make_schedule(name, **{**given, **changes})


def at(function, *steps):
  return [float(function(s)) for s in steps]


def test_constant():
  assert at(schedule('constant'), 0, 50, 99) == pytest.approx([0.1] * 3)


def test_cosine_starts_at_the_peak_and_ends_at_zero():
  values = at(schedule('cosine'), 0, 25, 50, 100)
  quarter = 0.05 * (1 + math.cos(math.pi / 4))
  assert values == pytest.approx([0.1, quarter, 0.05, 0.0], abs=1e-7)


def test_warmup_is_linear_from_zero_and_part_of_the_run():
  function = schedule('cosine', warmup_steps=20)
  assert at(function, 0, 5, 10, 19, 20) == pytest.approx(
    [0.0, 0.025, 0.05, 0.095, 0.1], abs=1e-7
  )
  # 60 is the middle of what is left after the warm-up.
  assert at(function, 60, 100) == pytest.approx([0.05, 0.0], abs=1e-7)


def test_step_multiplies_at_each_milestone():
  values = at(schedule('step'), 0, 49, 50, 74, 75, 99)
  assert values == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_step_keeps_its_milestones_under_warmup():
  function = schedule('step', warmup_steps=10)
  values = at(function, 5, 10, 49, 50, 74, 75, 99)
  assert values == pytest.approx([0.05, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_a_schedule_is_a_pure_function_of_the_step():
  """Any order of calls, eagerly or compiled, gives the same."""
  for name in ('constant', 'cosine', 'step'):
    function = schedule(name, warmup_steps=10)
    forth = at(function, *range(101))
    back = at(function, *reversed(range(101)))
    assert forth == back[::-1]
    compiled = jax.vmap(function)(jnp.arange(101))
    np.testing.assert_allclose(compiled, forth, rtol=1e-6, atol=1e-8)


def test_unknown_schedule():
  with pytest.raises(UserError, match='cos.*cosine'):
    schedule('cos')


def optimizer(name='sgd', rate=0.1, **changes):
  given = dict(
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    decay_on='kernels',
    clip_norm=0.0,
  )
  return optim.make_optimizer(name, lambda step: rate, **{**given, **changes})


RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 2))
GRADS = RNG.normal(size=(3, 3, 2))  # of three steps


def descend(tx, weight=WEIGHT, grads=GRADS):
  """Takes one step for each gradient."""
  params = {'kernel': jnp.asarray(weight, jnp.float32)}
  state = tx.init(params)
  for grad in grads:
    updates, state = tx.update(
      {'kernel': jnp.asarray(grad, jnp.float32)}, state, params
    )
    params = optax.apply_updates(params, updates)
  return np.asarray(params['kernel'])


def torch_sgd(rate, momentum, nesterov, decay):
  """The rule in the documentation of torch.optim.SGD, dampening 0."""
  weight, buffer = WEIGHT.copy(), None
  for grad in GRADS:
    grad = grad + decay * weight
    buffer = grad if buffer is None else momentum * buffer + grad
    weight = weight - rate * (grad + momentum * buffer if nesterov else buffer)
  return weight


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('decay', [0.0, 0.05])
def test_sgd_is_torchs(nesterov, momentum, decay):
  tx = optimizer(momentum=momentum, nesterov=nesterov, weight_decay=decay)
  expected = torch_sgd(0.1, momentum, nesterov, decay)
  np.testing.assert_allclose(descend(tx), expected, rtol=1e-5)


def test_adamw_decays_apart_from_the_gradient():
  """Loshchilov and Hutter 2019, algorithm 2; epsilon as in PyTorch."""
  first, second, weight = np.zeros((3, 2)), np.zeros((3, 2)), WEIGHT.copy()
  for n, grad in enumerate(GRADS, 1):
    first = 0.9 * first + 0.1 * grad
    second = 0.999 * second + 0.001 * grad**2
    adam = (first / (1 - 0.9**n)) / (np.sqrt(second / (1 - 0.999**n)) + 1e-8)
    weight = weight - 0.01 * (adam + 0.3 * weight)
  tx = optimizer('adamw', rate=0.01, weight_decay=0.3)
  np.testing.assert_allclose(descend(tx), weight, rtol=1e-5)


@pytest.mark.parametrize('name', ['sgd', 'adamw'])
def test_decay_leaves_biases_and_normalization_alone(name):
  """With a gradient of zero only decay moves a weight."""
  model = models.build('small_resnet', 10, dict(depth=8, width=4))
  image = jnp.zeros((1, 8, 8, 1))
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  params = jax.tree.map(lambda x: jnp.ones(x.shape), shapes['params'])
  for decay_on in ('kernels', 'all'):
    tx = optimizer(name, weight_decay=0.5, decay_on=decay_on)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    named, _ = jax.tree_util.tree_flatten_with_path(updates)
    kinds = {'kernel': set(), 'scale': set(), 'bias': set()}
    for path, leaf in named:
      kinds[path[-1].key].add(bool(jnp.any(leaf != 0)))
    rest = {decay_on == 'all'}
    assert kinds == {'kernel': {True}, 'scale': rest, 'bias': rest}


def test_clip_scales_by_the_global_norm():
  grads = {'a': jnp.full((2, 2), 3.0), 'b': jnp.full(4, 4.0)}  # norm 10
  params = jax.tree.map(jnp.zeros_like, grads)
  tx = optimizer(rate=1.0, clip_norm=2.0)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates['a'], np.full((2, 2), -0.6), rtol=1e-6)
  np.testing.assert_allclose(updates['b'], np.full(4, -0.8), rtol=1e-6)
  tx = optimizer(rate=1.0, clip_norm=11.0)  # below the bound: untouched
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates['b'], np.full(4, -4.0), rtol=1e-6)


def test_clipping_comes_before_decay():
  """Else a large gradient would switch the decay off."""
  tx = optimizer(rate=1.0, clip_norm=1.0, weight_decay=0.5)
  grad = np.full((3, 2), 1e6)
  moved = descend(tx, grads=[grad])
  expected = WEIGHT - grad / np.linalg.norm(grad) - 0.5 * WEIGHT
  np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)


def test_the_schedule_is_followed():
  tx = optim.make_optimizer(
    'sgd',
    schedule('step', total_steps=4, milestones=(0.5, 0.75)),
    momentum=0.0,
    nesterov=False,
    weight_decay=0.0,
    decay_on='all',
    clip_norm=0.0,
  )
  moved = descend(tx, np.zeros((1, 1)), np.ones((4, 1, 1)))
  np.testing.assert_allclose(moved, -(0.1 + 0.1 + 0.01 + 0.001), rtol=1e-5)


def test_unknown_names():
  with pytest.raises(UserError, match='adam.*adamw'):
    optimizer('adam')
  with pytest.raises(UserError, match='weights.*kernels'):
    optimizer(decay_on='weights')
