"""Each method's loss against its equation, written in NumPy float64."""

import ast
from functools import partial
from pathlib import Path

from helpers.equations import (
  ADV,
  CLEAN,
  STUDENT,
  TARGET,
  TEACHER,
  ce,
  ce_each,
  kl,
  kl_each,
  linear,
)
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.core import Batch, Context, Output
from jax_robust_kd.methods import METHODS


def context(student=STUDENT, teacher=TEACHER):
  """Linear networks, so that every loss can be written down by hand."""

  def network(weight, image, batch_stats=0):
    return Output(linear(weight, image), {}, batch_stats + 1)

  return Context(
    partial(network, student), partial(network, teacher), {}, jnp.zeros(())
  )


S, T, TA = linear(STUDENT, CLEAN), linear(TEACHER, CLEAN), linear(TEACHER, ADV)


def by_hand(formula):
  """Returns weights -> `formula` of the student's logits at x and at x'."""
  return lambda w: formula(linear(w, CLEAN), linear(w, ADV))


# method, arguments, loss by hand, passes that move the running averages
CASES = [
    ('natural', {}, by_hand(lambda s, sa: ce(s)), 1),
    ('pgd_at', {}, by_hand(lambda s, sa: ce(sa)), 1),
    ('trades', dict(beta=6.0), by_hand(lambda s, sa: ce(s) + 6 * kl(s, sa)), 2),
    ('kd', dict(alpha=0.9, temperature=4.0),
     by_hand(lambda s, sa: 0.9 * 16 * kl(T, s, 4.0) + 0.1 * ce(s)), 1),
    ('rslad', {},
     by_hand(lambda s, sa: 5 / 6 * kl(T, sa) + 1 / 6 * kl(T, s)), 2),
    ('rslad', dict(alpha=0.6, scale=0.1),
     by_hand(lambda s, sa: 0.06 * kl(T, sa) + 0.04 * kl(T, s)), 2),
    ('adaad', {}, by_hand(lambda s, sa: kl(TA, sa)), 1),
    ('adaad', dict(alpha=0.3),
     by_hand(lambda s, sa: 0.3 * kl(TA, sa) + 0.7 * kl(T, s)), 2),
    ('adaad', dict(scale=0.1), by_hand(lambda s, sa: 0.1 * kl(TA, sa)), 1),
    ('advfunmatch', {}, by_hand(lambda s, sa: kl(TA, sa)), 1),
    ('advfunmatch', dict(clean_weight=0.25),
     by_hand(lambda s, sa: 0.75 * kl(TA, sa) + 0.25 * kl(T, s)), 2),
]  # fmt: skip
BATCH = Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET))


@pytest.mark.parametrize('name,arguments,hand,passes', CASES)
def test_loss_equals_its_equation(name, arguments, hand, passes):
  out = METHODS[name](**arguments).loss(context(), BATCH, jnp.asarray(ADV))
  np.testing.assert_allclose(out.loss, hand(STUDENT), rtol=1e-5)
  assert out.batch_stats == passes


@pytest.mark.parametrize('name,arguments,hand,passes', CASES)
def test_gradient_equals_finite_differences(name, arguments, hand, passes):
  """Central differences of the NumPy loss are the reference."""
  del passes
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
    slope = (hand(STUDENT + step) - hand(STUDENT - step)) / 2e-5
    np.testing.assert_allclose(grad[index], slope, rtol=1e-6, atol=1e-8)


def names_of_cases(path: Path) -> set[str]:
  """Returns the methods in a file's CASES, without importing the test."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets) == 'CASES':
      return {case.elts[0].value for case in node.value.elts}
  return set()


def test_every_method_has_a_case():
  """CASES of this file and of its neighbours test_methods_*.py."""
  found = {case[0] for case in CASES}
  assert names_of_cases(Path(__file__)) == found
  for path in Path(__file__).parent.glob('test_methods_*.py'):
    names = names_of_cases(path)
    assert names, path
    found |= names
  assert found == METHODS.keys()


# What each inner problem maximizes, as a function of the images in NumPy.
INNER = [
  ('pgd_at', {}, lambda x: ce_each(linear(STUDENT, x))),
  ('trades', {}, lambda x: kl_each(S, linear(STUDENT, x))),
  ('rslad', {}, lambda x: kl_each(T, linear(STUDENT, x))),
  ('adaad', {}, lambda x: kl_each(linear(TEACHER, x), linear(STUDENT, x))),
  ('advfunmatch', {},
   lambda x: kl_each(linear(TEACHER, x), linear(STUDENT, x))),
  ('advfunmatch', dict(inner='cross_entropy_label'),
   lambda x: ce_each(linear(STUDENT, x))),
  ('advfunmatch', dict(inner='kl_to_teacher_clean'),
   lambda x: kl_each(T, linear(STUDENT, x))),
]  # fmt: skip


def attack(method):
  """Returns what `perturb` maximizes at ADV, [B] and by pixel; {} if nothing.

  In float64.
  """
  seen = {}

  class Result:
    adv = CLEAN

  def maximize(rng, loss_fn, image):
    del rng
    np.testing.assert_array_equal(image, CLEAN)
    adv = jnp.asarray(ADV)
    seen['value'] = np.asarray(loss_fn(adv))
    seen['slope'] = np.asarray(jax.grad(lambda x: loss_fn(x).sum())(adv))
    return Result

  with jax.enable_x64(True):
    ctx = context(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    batch = Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET))
    method.perturb(None, ctx, batch, maximize)
  return seen


@pytest.mark.parametrize('name,arguments,hand', INNER)
def test_inner_problem_is_the_papers(name, arguments, hand):
  """The loss handed to `maximize`, and its slope by every pixel."""
  seen = attack(METHODS[name](**arguments))
  np.testing.assert_allclose(seen['value'], hand(ADV), rtol=1e-9)
  for pixel in np.ndindex(ADV.shape[1:]):  # of all images at once
    step = np.zeros_like(ADV)
    step[(slice(None), *pixel)] = 1e-5
    slope = (hand(ADV + step) - hand(ADV - step)) / 2e-5
    found = seen['slope'][(slice(None), *pixel)]
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-8)


def test_the_others_have_no_inner_problem():
  for name in {case[0] for case in CASES} - {case[0] for case in INNER}:
    assert not attack(METHODS[name]()), name


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
