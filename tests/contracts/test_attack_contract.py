"""What every entry of ATTACKS must do; a new one is tested without a test."""

import sys
import types

from helpers.steps import network
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks import ATTACKS, Budget, as_plain_attack, find_attack
from jax_robust_kd.attacks.packing import check_inside
from jax_robust_kd.attacks.suites import plan
from jax_robust_kd.core import UserError, image_keys
from jax_robust_kd.losses import margin

BUDGETS = [
  Budget('linf', 0.1, 0.03, num_steps=8),
  Budget('l2', 1.0, 0.3, num_steps=8),
]


@pytest.fixture(scope='module')
def victim(digits):
  """A network fitted to 64 digits in a moment, so that attacks matter."""
  forward, variables = network(0, 8)
  image = jnp.asarray(digits.train.image[:64] / np.float32(255))
  label = jnp.asarray(digits.train.label[:64])

  @jax.jit
  def step(variables):
    def loss(params):
      out = forward({**variables, 'params': params}, image, 'train')
      log_p = jax.nn.log_softmax(out.logits)
      return -jnp.mean(log_p[jnp.arange(64), label]), out.batch_stats

    grad, stats = jax.grad(loss, has_aux=True)(variables['params'])
    params = jax.tree.map(lambda p, g: p - 0.2 * g, variables['params'], grad)
    return {'params': params, 'batch_stats': stats}

  for _ in range(60):
    variables = step(variables)
  logits_fn = jax.jit(lambda x: forward(variables, x, 'eval').logits)
  right = margin(logits_fn(image), label) < 0
  assert right.mean() > 0.9
  return logits_fn, image, label


def keys(seed, count):
  return image_keys(jax.random.key(seed), jnp.arange(count))


@pytest.mark.parametrize('budget', BUDGETS, ids=lambda b: b.norm)
@pytest.mark.parametrize('name', sorted(ATTACKS))
def test_attack(name, budget, victim):
  logits_fn, image, label = victim
  if name == 'square':  # its steps are queries
    budget = budget._replace(num_steps=300)
  attack = jax.jit(
    lambda rng, x, y: as_plain_attack(ATTACKS[name])(
      rng, logits_fn, x, y, budget
    )
  )
  adv = attack(keys(0, 64), image, label)
  # Inside the ball and the box, deterministic for a key.
  check_inside(
      np.asarray(adv), np.asarray(image, np.float64), budget.norm,
      budget.epsilon,
  )  # fmt: skip
  np.testing.assert_array_equal(adv, attack(keys(0, 64), image, label))
  # Never raises accuracy, and beats random noise of the same size.
  clean = float((margin(logits_fn(image), label) < 0).mean())
  attacked = float((margin(logits_fn(adv), label) < 0).mean())
  noise = jax.random.normal(jax.random.key(5), image.shape)
  if budget.norm == 'linf':
    noise = jnp.sign(noise) * budget.epsilon
  else:
    length = jnp.sqrt(jnp.sum(noise**2, axis=(1, 2, 3), keepdims=True))
    noise *= budget.epsilon / length
  noisy = jnp.clip(image + noise, 0, 1)
  by_noise = float((margin(logits_fn(noisy), label) < 0).mean())
  assert attacked <= clean
  assert attacked < by_noise
  # An attack is a function of the key: no state, whatever ran before.
  other = attack(keys(1, 64), image, label)
  if name not in ('fgsm', 'fab', 'fab_t'):  # these draw nothing at first
    assert np.abs(other - adv).max() > 0


def test_more_restarts_are_never_weaker(victim):
  logits_fn, image, label = victim
  budget = Budget('linf', 0.05, 0.02, num_steps=3)
  margins = []
  for restarts in (1, 4):
    adv = ATTACKS['pgd'](
        keys(0, 64), logits_fn, image, label,
        budget._replace(num_restarts=restarts),
    )  # fmt: skip
    margins.append(margin(logits_fn(adv), label))
  assert bool(jnp.all(margins[1] >= margins[0]))
  assert float(jnp.mean(margins[1] - margins[0])) > 0


def test_fgsm_by_hand(victim):
  logits_fn, image, label = victim
  budget = BUDGETS[0]
  adv = ATTACKS['fgsm'](keys(0, 64), logits_fn, image, label, budget)

  def loss(x):
    log_p = jax.nn.log_softmax(logits_fn(x))
    return -log_p[jnp.arange(64), label].sum()

  by_hand = image + budget.epsilon * jnp.sign(jax.grad(loss)(image))
  np.testing.assert_allclose(adv, jnp.clip(by_hand, 0, 1), atol=1e-6)


def test_names_as_papers_write_them():
  budget = BUDGETS[0]
  attack, read = find_attack('pgd-50x10', budget)
  assert attack is ATTACKS['pgd']
  assert (read.num_steps, read.num_restarts) == (50, 10)
  assert read.epsilon == budget.epsilon
  assert find_attack('fgsm', budget)[1].num_restarts == 1


def my_attack():
  """An attack of one's own, as a config names it."""
  return ATTACKS['pgd']


def test_an_attack_of_ones_own(monkeypatch):
  module = types.ModuleType('my.attacks')
  monkeypatch.setitem(sys.modules, 'my', types.ModuleType('my'))
  monkeypatch.setitem(sys.modules, 'my.attacks', module)
  monkeypatch.setattr(module, 'strong', my_attack, raising=False)
  (_, job) = plan(('my.attacks:strong-3x2',), BUDGETS[0])
  assert job.column == 'strong-3x2' and job.attack is ATTACKS['pgd']
  assert (job.budget.num_steps, job.budget.num_restarts) == (3, 2)
  with pytest.raises(UserError, match="two attacks 'strong'"):
    plan(('my.attacks:strong', 'my.attacks:strong'), BUDGETS[0])
  with pytest.raises(UserError, match="no 'weak'; write package.module:name"):
    plan(('my.attacks:weak',), BUDGETS[0])
  with pytest.raises(UserError, match='no_such_module.*PYTHONPATH'):
    plan(('no_such_module:strong',), BUDGETS[0])


@pytest.mark.parametrize('spec', ['pdg-20', 'pgd-', 'pgd-0', 'pgd20', ''])
def test_wrong_names_are_refused(spec):
  with pytest.raises(UserError, match=repr(spec)):
    find_attack(spec, BUDGETS[0])
