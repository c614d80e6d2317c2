"""models/conv.py against the plain convolution and its autodiff gradients."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.models import conv, narrow_conv

NHWC = ('NHWC', 'HWIO', 'NHWC')
CASES = {
  '3x3': (8, 3, 1, ((1, 1), (1, 1)), 4, 5, 1),
  '3x3 large': (10, 3, 1, ((1, 1), (1, 1)), 4, 5, 1),
  '3x3 large stride 2': (17, 3, 2, ((1, 1), (1, 1)), 4, 5, 1),
  '3x3 stride 2': (8, 3, 2, ((1, 1), (1, 1)), 4, 5, 1),
  '3x3 stride 2 same': (8, 3, 2, 'SAME', 4, 5, 1),
  '3x3 stride 2 odd': (7, 3, 2, ((1, 1), (1, 1)), 4, 5, 1),
  '1x1': (6, 1, 1, 'SAME', 4, 5, 1),
  '1x1 stride 2': (7, 1, 2, ((0, 0), (0, 0)), 4, 5, 1),
  '1x1 padded': (5, 1, 1, ((1, 1), (1, 1)), 3, 2, 1),
  '4x4 stride 4': (8, 4, 4, 'VALID', 3, 4, 1),
  '4x4 same': (8, 4, 1, 'SAME', 3, 4, 1),
  '7x7 stride 2': (9, 7, 2, ((3, 3), (3, 3)), 3, 4, 1),
  'pad wider than kernel': (5, 1, 1, ((2, 0), (0, 3)), 2, 3, 1),
  # Several pixels at once, where the width (size + 1) is no multiple of them.
  '3x3 narrow': (9, 3, 1, ((1, 1), (1, 1)), 16, 16, 1),
  '3x3 of 1 channel': (8, 3, 1, 'SAME', 1, 16, 1),
  '5x5 to 3 channels': (9, 5, 1, ((2, 2), (0, 1)), 8, 3, 1),
  '3x3 narrow cropped': (9, 3, 1, ((-1, 1), (1, -2)), 8, 8, 1),
  '3x3 narrow stride 2': (9, 3, 2, ((1, 1), (1, 1)), 8, 8, 1),
  'grouped': (6, 3, 2, ((1, 1), (1, 1)), 4, 6, 2),  # the plain one
  'depthwise': (6, 3, 1, ((1, 1), (1, 1)), 4, 4, 4),
  'depthwise stride 2': (7, 3, 2, ((1, 1), (1, 1)), 4, 4, 4),
  'depthwise same': (8, 3, 2, 'SAME', 4, 4, 4),
  'depthwise times 2': (6, 3, 1, 'SAME', 3, 6, 3),
}
# Each way of computing the weight gradient once.
TWICE = (
  '3x3 narrow',
  '3x3 large',
  '3x3 stride 2 odd',
  '1x1 stride 2',
  'depthwise stride 2',
)


@pytest.mark.parametrize(
  'channels, features, width, pixels',
  [
    (16, 16, 32, 2),
    (16, 3, 32, 4),
    (8, 8, 9, 4),
    (3, 16, 32, 4),
    (3, 32, 32, 2),
    (3, 64, 32, 1),
    (17, 16, 32, 1),
    (16, 32, 32, 1),
    (1, 1, 1, 1),
  ],
)
def test_pixels_made_together(channels, features, width, pixels):
  assert narrow_conv.pixels_together(channels, features, width) == pixels


def arrays(size, kernel, channels, features, groups):
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (3, size, size + 1, channels))
  shape = (kernel, kernel, channels // groups, features)
  return x, jax.random.normal(keys[1], shape)


def pair(case):
  """The two convolutions of a case as functions of (x, w)."""
  size, kernel, stride, padding, channels, features, groups = CASES[case]
  settings = {
    'window_strides': (stride, stride),
    'padding': padding,
    'dimension_numbers': NHWC,
    'feature_group_count': groups,
  }
  ours = lambda x, w: conv.conv_general(x, w, **settings)  # noqa: E731
  plain = lambda x, w: lax.conv_general_dilated(x, w, **settings)  # noqa: E731
  return ours, plain, arrays(size, kernel, channels, features, groups)


def close(a, b):
  for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    scale = float(jnp.max(jnp.abs(two)))
    np.testing.assert_allclose(one, two, rtol=0, atol=2e-5 * scale)


def gradients(f):
  """(value, both gradients) of a cubic function of the convolution."""

  def cubic(x, w):
    y = f(x, w)
    return jnp.sum(y**3), y

  return jax.grad(cubic, (0, 1), has_aux=True)


@pytest.mark.parametrize('case', CASES)
def test_value_and_gradients(case):
  ours, plain, (x, w) = pair(case)
  close(jax.jit(gradients(ours))(x, w), jax.jit(gradients(plain))(x, w))


@pytest.mark.parametrize('case', TWICE)
def test_gradients_of_gradients(case):
  ours, plain, (x, w) = pair(case)

  def twice(f):
    def inner(x, w):
      gx, gw = gradients(f)(x, w)[0]
      return jnp.sum(gx**2) + jnp.sum(jnp.sin(gw))

    return jax.jit(jax.grad(inner, (0, 1)))

  close(twice(ours)(x, w), twice(plain)(x, w))


def test_it_is_our_gradient_that_was_tested():
  ours, _, (x, w) = pair('3x3')
  assert 'custom_vjp' in str(jax.make_jaxpr(ours)(x, w))


def test_gradients_stay_canonical_inside_a_scan():
  """No convolution of a compiled loop may have permuted dimensions."""
  ours, _, (x, w) = pair('3x3 stride 2')

  def loop(x, w):
    def body(x, _):
      return x - 0.1 * jax.grad(lambda z: jnp.sum(ours(z, w) ** 2))(x), None

    return lax.scan(body, x, None, length=3)[0]

  text = jax.jit(loop).lower(x, w).as_text()
  layouts = text.split('dim_numbers = ')[1:]
  assert layouts
  assert all(
    s.startswith('[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]') for s in layouts
  )


def test_other_backends_take_the_plain_convolution(monkeypatch):
  ours, _, (x, w) = pair('3x3')
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert 'custom_vjp' not in str(jax.make_jaxpr(ours)(x, w))


def test_kernel_dilation_takes_the_plain_convolution():
  _, _, (x, w) = pair('3x3')
  settings = {'rhs_dilation': (2, 2), 'dimension_numbers': NHWC}
  close(
    conv.conv_general(x, w, (1, 1), 'SAME', **settings),
    lax.conv_general_dilated(x, w, (1, 1), 'SAME', **settings),
  )


@pytest.mark.parametrize(
  'batch, size, blocks',
  [
    (64, 1, 1),
    (64, 2**30, 64),
    (64, 2**19, 4),
    (7, 2**21, 7),
    (1, 2**40, 1),
  ],
)
def test_blocks_divide_the_batch(batch, size, blocks):
  assert conv._num_blocks(batch, size) == blocks
