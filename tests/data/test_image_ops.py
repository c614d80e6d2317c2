"""Every operation against Pillow, over magnitudes and on several images."""

from functools import partial
import math

import jax
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest

from jax_robust_kd.data import image_ops, spatial
from jax_robust_kd.data.image_ops import Op

NEAREST = Image.Resampling.NEAREST


@pytest.fixture(scope='module')
def images(digits):
  """Colourful, 24 x 32: digits in colours, ramps, noise, few and one colour."""
  rng = np.random.default_rng(0)
  large = digits.train.image[:6, ..., 0].repeat(3, 1).repeat(4, 2)
  ink = rng.integers(0, 256, (6, 1, 1, 3))
  paper = rng.integers(0, 256, (6, 1, 1, 3))
  share = large[..., None] / 255
  y, x = np.mgrid[:24, :32]
  ramp = np.stack([8 * x, 10 * y, 255 - 4 * (x + y)], -1)
  noise = rng.integers(0, 256, (2, 24, 32, 3))
  dull = rng.integers(90, 130, (2, 24, 32, 3))
  few = rng.integers(0, 3, (1, 24, 32, 3)) * 100
  flat = np.full((1, 24, 32, 3), 7)
  colours = share * ink + (1 - share) * paper
  parts = [colours, ramp[None], noise, dull, few, flat]
  return np.concatenate(parts).astype(np.uint8)


def scalar(op: Op) -> Op:
  return Op(*(field[0] for field in image_ops.stack([op], (1,))))


RUN = jax.jit(jax.vmap(image_ops.apply_op, in_axes=(None, 0)))


def difference(op, pillow, images):
  """Largest difference between ours and Pillow's, in grey levels."""
  ours = np.asarray(RUN(scalar(op), images))
  assert ours.dtype == np.uint8 and ours.shape == images.shape
  theirs = [pillow(Image.fromarray(one.squeeze())) for one in images]
  theirs = np.stack([np.asarray(one) for one in theirs]).reshape(ours.shape)
  return np.abs(ours.astype(int) - theirs).max()


def affine(*matrix):
  return lambda one: one.transform(
    one.size, Image.Transform.AFFINE, matrix, NEAREST
  )


def lighten(one, addend):
  return one.point(lambda v: v if v >= 128 else min(v + addend, 255))


EXACT = {
  **{
    f'posterize {b}': (
      image_ops.posterize(b),
      partial(ImageOps.posterize, bits=b),
    )
    for b in range(1, 9)
  },
  **{
    f'solarize {t}': (
      image_ops.solarize(t),
      partial(ImageOps.solarize, threshold=t),
    )
    for t in (0, 28.3, 127.5, 128, 254.9, 255, 256)
  },
  **{
    f'solarize_add {a}': (
      image_ops.solarize_add(a),
      partial(lighten, addend=a),
    )
    for a in (0, 11, 110, 200)
  },
  'invert': (image_ops.invert(), ImageOps.invert),
  'autocontrast': (image_ops.autocontrast(), ImageOps.autocontrast),
  'equalize': (image_ops.equalize(), ImageOps.equalize),
  **{
    f'shear_x {s}': (image_ops.shear_x(s), affine(1, s, 0, 0, 1, 0))
    for s in (-0.99, -0.3, -0.1 / 3, 0, 0.2)
  },
  **{
    f'shear_y {s}': (image_ops.shear_y(s), affine(1, 0, 0, s, 1, 0))
    for s in (-0.99, -0.3, -0.1 / 3, 0, 0.2)
  },
  'shear_x at 12': (image_ops.shear_x(0.3, 12), affine(1, 0.3, -3.6, 0, 1, 0)),
  'shear_y at 16': (image_ops.shear_y(0.3, 16), affine(1, 0, 0, 0.3, 1, -4.8)),
  **{
    f'translate_x {p}': (
      image_ops.translate_x(p),
      affine(1, 0, -math.trunc(p), 0, 1, 0),
    )
    for p in (-40, -14.5, 0, 3, 7.9)
  },
  **{
    f'translate_y {p}': (
      image_ops.translate_y(p),
      affine(1, 0, 0, 0, 1, -math.trunc(p)),
    )
    for p in (-40, -14.5, 0, 3, 7.9)
  },
  **{
    f'rotate {d}': (
      image_ops.rotate(d, 24, 32),
      partial(Image.Image.rotate, angle=d, resample=NEAREST),
    )
    for d in (-135, -30, -6.7, 0, 1, 20, 45, 121.5, 180)
  },
}


@pytest.mark.parametrize('name', EXACT)
def test_equal_to_pillow(images, name):
  assert difference(*EXACT[name], images) == 0


@pytest.mark.parametrize('factor', [0, 0.1, 0.37, 0.9, 1, 1.27, 1.5, 1.9])
@pytest.mark.parametrize(
  'name', ['Brightness', 'Contrast', 'Color', 'Sharpness']
)
def test_blends_are_pillows_up_to_one_level(images, name, factor):
  """A fused multiply-add may land on the other side of a cut fraction."""
  op = getattr(image_ops, name.lower())(factor)
  pillow = lambda one: getattr(ImageEnhance, name)(one).enhance(factor)  # noqa: E731
  assert difference(op, pillow, images) <= 1


@pytest.mark.parametrize(
  'name',
  ['posterize 3', 'autocontrast', 'equalize', 'rotate 20', 'shear_x 0.2'],
)
def test_grey_images(images, name):
  assert difference(*EXACT[name], images[..., :1]) == 0


def test_grey_images_have_no_colour_to_change(images):
  grey = images[..., 1:2]
  np.testing.assert_array_equal(RUN(scalar(image_ops.color(0.3)), grey), grey)


def test_an_op_changes_nothing_by_default(images):
  np.testing.assert_array_equal(RUN(scalar(Op()), images), images)


def test_autocontrast_cuts_where_pillows_double_precision_does():
  """For range 0 to 25, 25 * 10.2 is 254.99999999999997 and becomes 254."""
  ends = [(0, 25), (0, 105), (1, 19), (30, 200), (254, 255), (3, 220)]
  level = np.linspace(0, 1, 256).reshape(16, 16, 1)
  images = np.stack([low + (high - low) * level for low, high in ends])
  images = images.round().astype(np.uint8)
  assert difference(*EXACT['autocontrast'], images) == 0
  first = np.asarray(RUN(scalar(image_ops.autocontrast()), images))[0]
  assert first.max() == 254


def test_every_image_of_a_batch_may_get_another_operation(images):
  chosen = list(EXACT.values())[:: len(EXACT) // len(images)][: len(images)]
  ops = image_ops.stack([op for op, _ in chosen], (len(images),))
  out = jax.jit(jax.vmap(image_ops.apply_op))(ops, images)
  for (_, pillow), one, result in zip(chosen, images, out, strict=True):
    np.testing.assert_array_equal(result, pillow(Image.fromarray(one)))


@pytest.mark.parametrize(
  'box', [(0, 0, 24, 32), (3, 5, 12, 20), (0, 20, 24, 12), (10, 0, 7, 5)]
)
def test_enlarged_windows_are_pillows_within_two_levels(images, box):
  top, left, rows, columns = box
  enlarge = jax.jit(jax.vmap(spatial.resize_window, (0, *[None] * 4)))
  ours = np.asarray(enlarge(images, *box)).astype(int)
  for one, result in zip(images, ours, strict=True):
    window = one[top : top + rows, left : left + columns]
    theirs = Image.fromarray(window).resize((32, 24), Image.Resampling.BILINEAR)
    assert np.abs(result - np.asarray(theirs)).max() <= 2
