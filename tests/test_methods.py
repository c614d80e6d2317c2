"""Each method's loss against its equation, written in NumPy float64."""

from functools import partial
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.core import Batch, Context, Output
from jax_robust_kd.methods import METHODS

RNG = np.random.default_rng(0)
CLEAN = RNG.uniform(size=(6, 2, 2, 1))
ADV = np.clip(CLEAN + RNG.uniform(-0.1, 0.1, CLEAN.shape), 0, 1)
STUDENT, TEACHER = RNG.normal(size=(2, 4, 3)) * 4
LABEL = np.array([0, 1, 2, 0, 1, 2])
TARGET = np.eye(3)[LABEL]


def linear(weight, image):
  return image.reshape(len(image), -1) @ weight


def context(student=STUDENT, teacher=TEACHER):
  """Linear networks, so that every loss can be written down by hand."""

  def network(weight, image, batch_stats=0):
    return Output(linear(weight, image), {}, batch_stats + 1)

  return Context(
    partial(network, student), partial(network, teacher), {}, jnp.zeros(())
  )


def softmax(z):
  e = np.exp(z - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def kl(p_logits, q_logits, t=1.0):
  p, q = softmax(p_logits / t), softmax(q_logits / t)
  return (p * np.log(p / q)).sum(axis=1).mean()


def ce(logits):
  return -np.log(softmax(logits)[np.arange(6), LABEL]).mean()


S, SA = linear(STUDENT, CLEAN), linear(STUDENT, ADV)
T, TA = linear(TEACHER, CLEAN), linear(TEACHER, ADV)

# method, arguments, loss by hand, passes that move the running averages
CASES = [
    ('natural', {}, ce(S), 1),
    ('pgd_at', {}, ce(SA), 1),
    ('trades', dict(beta=6.0), ce(S) + 6 * kl(S, SA), 2),
    ('kd', dict(alpha=0.9, temperature=4.0),
     0.9 * 16 * kl(T, S, 4.0) + 0.1 * ce(S), 1),
    ('rslad', {}, 5 / 6 * kl(T, SA) + 1 / 6 * kl(T, S), 2),
    ('rslad', dict(alpha=0.6, scale=0.1),
     0.06 * kl(T, SA) + 0.04 * kl(T, S), 2),
    ('adaad', {}, kl(TA, SA), 1),
    ('adaad', dict(scale=0.1), 0.1 * kl(TA, SA), 1),
    ('adaad', dict(alpha=0.3), 0.3 * kl(TA, SA) + 0.7 * kl(T, S), 2),
    ('advfunmatch', {}, kl(TA, SA), 1),
    ('advfunmatch', dict(clean_weight=0.25),
     0.75 * kl(TA, SA) + 0.25 * kl(T, S), 2),
]  # fmt: skip
BATCH = Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET))


@pytest.mark.parametrize('name,arguments,expected,passes', CASES)
def test_loss_equals_its_equation(name, arguments, expected, passes):
  out = METHODS[name](**arguments).loss(context(), BATCH, jnp.asarray(ADV))
  np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
  assert out.batch_stats == passes


@pytest.mark.parametrize('name,arguments,expected,passes', CASES)
def test_gradient_equals_finite_differences(name, arguments, expected, passes):
  """Central differences in float64 of the NumPy loss are the reference."""
  del expected, passes
  with jax.enable_x64(True):
    method = METHODS[name](**arguments)

    def loss(student):
      ctx = context(student, jnp.asarray(TEACHER))
      batch = Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET))
      return method.loss(ctx, batch, jnp.asarray(ADV)).loss

    grad = np.asarray(jax.grad(loss)(jnp.asarray(STUDENT)))
    for index in np.ndindex(STUDENT.shape):
      step = np.zeros_like(STUDENT)
      step[index] = 1e-5
      slope = (loss(STUDENT + step) - loss(STUDENT - step)) / 2e-5
      np.testing.assert_allclose(grad[index], slope, rtol=1e-6, atol=1e-8)


def test_every_method_has_a_case():
  """CASES of this file and of its neighbours test_methods_*.py."""
  found = {case[0] for case in CASES}
  for path in Path(__file__).parent.glob('test_methods_*.py'):
    found |= {case[0] for case in import_module(path.stem).CASES}
  assert found == METHODS.keys()


# What each inner problem maximizes, as a function of the images in NumPy.
INNER = {
  'pgd_at': lambda x: ce_each(linear(STUDENT, x)),
  'trades': lambda x: kl_each(S, linear(STUDENT, x)),
  'rslad': lambda x: kl_each(T, linear(STUDENT, x)),
  'adaad': lambda x: kl_each(linear(TEACHER, x), linear(STUDENT, x)),
  'advfunmatch': lambda x: kl_each(linear(TEACHER, x), linear(STUDENT, x)),
}


def ce_each(logits):
  return -np.log(softmax(logits)[np.arange(6), LABEL])


def kl_each(p_logits, q_logits):
  p, q = softmax(p_logits), softmax(q_logits)
  return (p * np.log(p / q)).sum(axis=1)


@pytest.mark.parametrize('name', sorted({case[0] for case in CASES}))
def test_inner_problem_is_the_papers(name):
  """The loss handed to `maximize` and its gradient, at a given point."""
  seen = {}

  class Result:
    adv = BATCH.image

  def maximize(rng, loss_fn, image):
    del rng
    seen['value'] = loss_fn(jnp.asarray(ADV))
    seen['grad'] = jax.grad(lambda x: loss_fn(x).sum())(jnp.asarray(ADV))
    np.testing.assert_array_equal(image, BATCH.image)
    return Result

  METHODS[name]().perturb(None, context(), BATCH, maximize)
  if name not in INNER:
    assert not seen, 'a method without an inner problem attacked'
    return
  np.testing.assert_allclose(seen['value'], INNER[name](ADV), rtol=1e-4)
  step = np.zeros_like(ADV)
  step[0, 1, 0, 0] = 1e-6
  slope = (INNER[name](ADV + step) - INNER[name](ADV - step))[0] / 2e-6
  np.testing.assert_allclose(seen['grad'][0, 1, 0, 0], slope, rtol=1e-3)


def test_advfunmatch_without_augmentation_is_adaad_at_weight_one():
  """As its docstring says: same loss, same gradient, same inner problem."""
  a, b = METHODS['advfunmatch'](), METHODS['adaad'](alpha=1.0)
  assert a.perturb is b.perturb

  def value(method, weight):
    return method.loss(context(weight), BATCH, jnp.asarray(ADV)).loss

  both = [
    jax.value_and_grad(partial(value, m))(jnp.asarray(STUDENT)) for m in (a, b)
  ]
  np.testing.assert_array_equal(both[0][0], both[1][0])
  np.testing.assert_array_equal(both[0][1], both[1][1])
