"""Adversarial weight perturbation by hand, alone and with other methods."""

from functools import cache, partial

from helpers.steps import small_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import config, data
from jax_robust_kd.core import AXIS, LossOutput
from jax_robust_kd.methods import METHODS
from jax_robust_kd.runtime import parallel
from jax_robust_kd.training import averages, build
from jax_robust_kd.training.gradients import awp, plain

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 4))  # two devices
Y = RNG.normal(size=(2, 5, 3))
W, B, HEAD = (
  RNG.normal(size=(4, 3)),
  RNG.normal(size=3),
  RNG.normal(size=(3, 3)),
)


def slopes(w, b, head, device):
  """d / d (w, b, head) of mean |(x w + b) head - y|^2, by hand."""
  hidden = X[device] @ w + b
  error = 2 * (hidden @ head - Y[device]) / 5
  back = error @ head.T
  return X[device].T @ back, back.sum(axis=0), hidden.T @ error


def by_hand(gamma):
  """The gradients of both devices at w + v, v along their mean."""
  up = np.mean([slopes(W, B, HEAD, d)[0] for d in range(2)], axis=0)
  moved = W + gamma * up * np.linalg.norm(W) / np.linalg.norm(up)
  return moved, [slopes(moved, B, HEAD, d) for d in range(2)]


def ours(gradient, step=0):
  """(grads, LossOutput) of each device."""

  def loss(params, x, y):
    out = (x @ params['student']['w'] + params['student']['b']) @ params[
      'heads'
    ]
    value = jnp.mean(jnp.sum((out - y) ** 2, axis=1))
    return value, LossOutput(value, params['student']['w'], {})

  def device(x, y):
    params = {'student': {'w': W, 'b': B}, 'heads': HEAD}
    grad_fn = jax.grad(lambda p: loss(p, x, y), has_aux=True)
    return gradient(grad_fn, jax.tree.map(jnp.asarray, params), step)

  with jax.enable_x64(True):
    return jax.vmap(device, axis_name=AXIS)(jnp.asarray(X), jnp.asarray(Y))


@pytest.mark.parametrize('gamma', [0.01, 0.3])
def test_awp_is_its_formula(gamma):
  grads, out = ours(awp(gamma))
  moved, expected = by_hand(gamma)
  for device in range(2):
    w, b, head = expected[device]
    np.testing.assert_allclose(grads['student']['w'][device], w, rtol=1e-9)
    np.testing.assert_allclose(grads['student']['b'][device], b, rtol=1e-9)
    np.testing.assert_allclose(grads['heads'][device], head, rtol=1e-9)
    # What the second pass saw: the kernel moved, by the same on each device.
    np.testing.assert_allclose(out.batch_stats[device], moved, rtol=1e-9)
  length = np.linalg.norm(moved - W) / np.linalg.norm(W)
  np.testing.assert_allclose(length, gamma)


def test_awp_waits():
  waiting = awp(0.3, warmup_steps=4)
  for step, other in ((3, plain), (4, awp(0.3))):
    jax.tree.map(
      partial(np.testing.assert_allclose, rtol=1e-12),
      ours(waiting, step),
      ours(other, step),
    )
  assert (
    np.abs(ours(plain)[0]['heads'] - ours(awp(0.3))[0]['heads']).max() > 0.1
  )


def test_awp_of_a_flat_loss_does_not_move():
  """A gradient of 0 has no direction."""
  params = {'student': {'w': jnp.ones((2, 2))}}

  def device(x):
    flat = jax.grad(
      lambda p: (0 * x * p['student']['w'].sum(), p), has_aux=True
    )
    return awp(0.1)(flat, params, 0)[1]

  seen = jax.vmap(device, axis_name=AXIS)(jnp.ones(1))
  np.testing.assert_array_equal(seen['student']['w'][0], 1.0)


def test_awp_of_a_config():
  c = config.load_config('configs/pgd_at.py:digits')
  assert build.make_gradient(c, 7) is plain
  c.optimizer.update(awp_gamma=0.3, awp_warmup_epochs=2.0)
  gradient = build.make_gradient(c, 7)
  for step, other in ((13, plain), (14, awp(0.3))):
    np.testing.assert_allclose(
      ours(gradient, step)[0]['heads'], ours(other)[0]['heads'], rtol=1e-12
    )


# A method for each kind of what a step carries: nothing, heads and a bank, a
# weight and two teachers, a discriminator, a queue over devices, a peer; and of
# what it does: passes in a loop, gradients of gradients.
BESIDES = {
  'kd': {},
  'crd': dict(negatives=8),
  'mtard': {},
  'igam': dict(layers=2, channels=2),
  'gacd': dict(negatives='bank', direction='both', bank_size=48),
  'peeraid': {},
  'darwin': dict(num_points=2),
  'igdm': {},
}


def seeing(gradient):
  """Adds the weights of the last pass to the metrics, as 'seen'."""

  def seen(grad_fn, params, step):
    def noting(params):
      grads, out = grad_fn(params)
      return grads, out._replace(metrics={**out.metrics, 'seen': params})

    return gradient(noting, params, step)

  return seen


@pytest.fixture(scope='module')
def taught(digits):
  """Returns name -> (setup, batches, step of two devices on one)."""

  @cache
  def once(name):
    setup = small_step(
      METHODS[name](**BESIDES[name]),
      digits,
      gradient=seeing(awp(0.01)),
      average=averages.swa(1, 1),
    )
    batches = data.train_batches(
      digits.train, batch_size=16, seed=0, start_step=0, num_local_devices=2
    )
    step = jax.vmap(setup.step, (None, None, 0), None, axis_name=AXIS)
    return setup, [next(batches) for _ in range(3)], jax.jit(step)

  return once


@pytest.mark.parametrize('name', BESIDES)
def test_awp_and_swa_go_with_any_method(name, taught):
  """The kernels are moved and nothing else; SWA is the mean of two steps."""
  setup, batches, step = taught(name)
  states, metrics = [setup.state], {}
  for batch in batches:
    state, metrics = step(states[-1], setup.teacher_variables, batch)
    states.append(state)
  start, seen = states[2].params, metrics['seen']
  assert start.keys() == seen.keys() == setup.state.params.keys()
  for key in start.keys() - {'student'}:
    jax.tree.map(np.testing.assert_array_equal, start[key], seen[key])
  jax.tree.map(check_move, start['student'], seen['student'])
  jax.tree.map(
    lambda a, p, q: np.testing.assert_allclose(a, (p + q) / 2, atol=1e-6),
    states[3].ema_params,
    states[2].params['student'],
    states[3].params['student'],
  )
  left = states[3], metrics
  assert all(np.isfinite(v).all() for v in jax.tree.leaves(left))


def check_move(before, after):
  if before.ndim < 2:
    np.testing.assert_array_equal(before, after)
    return
  length = np.linalg.norm(after - before) / np.linalg.norm(before)
  np.testing.assert_allclose(length, 0.01, rtol=1e-3)


def test_awp_and_swa_on_two_devices(taught):
  """One trace; two devices are as one; only what is averaged leaves."""
  setup, batches, single = taught('gacd')
  expected, wanted = single(setup.state, setup.teacher_variables, batches[0])
  traces = []

  def counting(*args):
    traces.append(1)
    return setup.step(*args)

  step = parallel.pmap_step(counting)
  teachers = parallel.replicate(setup.teacher_variables)
  state, metrics = step(parallel.replicate(setup.state), teachers, batches[0])
  np.testing.assert_allclose(metrics['loss'], wanted['loss'], rtol=1e-5)
  kept = lambda s: (s.params, s.memory, s.ema_params, s.ema_stats)  # noqa: E731
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    *jax.tree.map(np.asarray, (kept(state), kept(expected))),
  )
  for batch in batches[1:]:
    state, _ = step(state, teachers, batch)
  assert len(traces) == 1, 'the step was traced again'
