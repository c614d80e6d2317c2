"""interop/functions.py: any JAX function as a network."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.core import UserError
from jax_robust_kd.interop import functions

SHAPE = (8, 8, 1)


class Small(nnx.Module):
  def __init__(self, seed=0):
    rngs = nnx.Rngs(seed)
    self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.head = nnx.Linear(4, 10, rngs=rngs)

  def __call__(self, image):
    x = nnx.relu(self.norm(self.conv(image)))
    return self.head(x.mean((1, 2)))


def images(count=3):
  return np.random.default_rng(1).random((count, *SHAPE), np.float32)


def test_a_module_of_nnx_is_a_network_whose_weights_are_arguments():
  model = Small()
  model.eval()
  forward, variables, classes = functions.wrap('teacher', model, SHAPE)
  assert classes == 10
  assert sum(w.size for w in variables['params']) == 36 + 4 + 4 * 4 + 50
  output = jax.jit(forward, static_argnums=2)(variables, images(), 'eval')
  np.testing.assert_allclose(output.logits, model(images()), atol=1e-5)
  zeros = jax.tree.map(jnp.zeros_like, variables)
  assert not np.any(forward(zeros, images(), 'eval').logits)


def test_batchnorm_in_training_mode_is_refused():
  model = Small()
  model.train()
  with pytest.raises(UserError, match=r'model.eval\(\)'):
    functions.wrap('teacher', model, SHAPE)


def test_a_plain_function_and_one_with_arrays():
  kernel = np.random.default_rng(0).random((64, 5), np.float32)

  def apply(kernel, image):
    return image.reshape(len(image), -1) @ kernel

  for function, count in (
    (lambda image: apply(kernel, image), 0),
    (jax.tree_util.Partial(apply, kernel), 1),
  ):
    forward, variables, classes = functions.wrap('teacher', function, SHAPE)
    assert (classes, len(variables['params'])) == (5, count)
    logits = forward(variables, images(), 'eval').logits
    np.testing.assert_allclose(logits, apply(kernel, images()), rtol=1e-5)


@pytest.mark.parametrize(
  'function,words',
  [
    (3, 'int, not a function'),
    (lambda image: image, r'shape \(2, 8, 8, 1\) for 2 images'),
    (lambda image: image @ np.ones((7, 7)), 'cannot be called on images'),
  ],
)
def test_what_returns_no_logits_is_refused(function, words):
  with pytest.raises(UserError, match=words):
    functions.wrap('teacher.function', function, SHAPE)


def test_features_that_are_not_there_are_refused():
  features = functions.NoFeatures()
  assert jax.tree.leaves(jax.jit(lambda: features)()) == []
  for ask in (
    lambda f: f['pooled'],
    lambda f: {'pooled': 0}.keys() & f.keys(),
    lambda f: 'pooled' in f,
    list,
  ):
    with pytest.raises(UserError, match='logits alone'):
      ask(features)
