"""The examples in the docstrings of public names run as they stand."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import attacks

NAMES = [
  'Budget', 'as_plain_attack', 'ascent', 'autoattack', 'cw', 'fgsm',
  'find_attack', 'kl_pgd', 'pgd',
]  # fmt: skip


@pytest.fixture(scope='module')
def names():
  """What the examples take as given, beside the names of `attacks`."""
  image = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
  weight = jax.random.normal(jax.random.key(1), (192, 10))
  logits_fn = lambda x: x.reshape(len(x), -1) @ weight  # noqa: E731
  return {
    **{name: getattr(attacks, name) for name in attacks.__all__},
    'jax': jax,
    'jnp': jnp,
    'rng': jax.random.split(jax.random.key(0), 4),
    'logits_fn': logits_fn,
    'image': image,
    'label': np.asarray(logits_fn(image).argmax(1), np.int32),
    'budget': attacks.Budget('linf', 8 / 255, 2 / 255, num_steps=5),
  }


@pytest.mark.parametrize('name', NAMES)
def test_example(name, names):
  text = getattr(attacks, name).__doc__
  example = doctest.DocTestParser().get_doctest(
    text, dict(names), name, None, None
  )
  assert example.examples, f'{name} has no example'
  failed, _ = doctest.DocTestRunner().run(example)
  assert not failed
