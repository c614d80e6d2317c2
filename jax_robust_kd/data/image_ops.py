"""Operations on uint8 images with Pillow's arithmetic, on the device.

Every operation of the augmentation policies is a warp (where a pixel comes
from), a lookup table (what becomes of a grey level) or a blend with a simpler
image. An `Op` holds all three, with values that change nothing where one is not
used: images that get different operations then run the same program, whose
cost does not grow with the number of operations to choose from.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
import numpy as np

from jax_robust_kd.core import Array

_LEVELS = np.arange(256, dtype=np.int32)
# Indices into _TABLES and _BASES, below.
_POSTERIZE, _SOLARIZE, _SOLARIZE_ADD, _AUTOCONTRAST, _EQUALIZE = range(5)
_BLACK, _MEAN, _GREY, _SMOOTH = range(4)
# Pillow warps in fixed point, with 16 bits after the point.
_POINT = 16


class Op(NamedTuple):
  """A warp, then a table, then a blend; by default none changes anything.

  The functions below make one operation of plain numbers; `stack` makes arrays.

  Attributes:
    matrix: [..., 6] int32, (a, b, c, d, e, f): the pixel in column x and row y
      comes from column a x + b y + c, row d x + e y + f; in units of 2^-16.
    table: [...] int32, which lookup table.
    level: [...] int32, its argument: bits, threshold or addend.
    base: [...] int32, which simpler image is blended with.
    factor: [...] float32, base + factor * (image - base); 1 is the image.
  """

  matrix: Any = np.array([1, 0, 0.5, 0, 1, 0.5]) * 2**_POINT
  table: Any = _POSTERIZE
  level: Any = 8
  base: Any = _BLACK
  factor: Any = 1.0


def stack(ops: list[Op], shape: tuple[int, ...]) -> Op:
  """Arranges as many operations as `shape` has places, last index first."""
  dtypes = Op(np.int32, np.int32, np.int32, np.int32, np.float32)
  columns = (
    np.array(values, dtype)
    for values, dtype in zip(zip(*ops, strict=True), dtypes, strict=True)
  )
  return Op(*(c.reshape(*shape, *c.shape[1:]) for c in columns))


def _affine(a, b, c, d, e, f) -> Op:
  """Source of a place; pixel centres are at halves, so c and f move by them."""
  c, f = c + (a + b) / 2, f + (d + e) / 2
  return Op(matrix=np.floor(np.array([a, b, c, d, e, f]) * 2**_POINT + 0.5))


def shear_x(slope: float, center: float = 0.0) -> Op:
  """Moves a row to the left by `slope` times its distance from `center`."""
  return _affine(1, slope, -slope * center, 0, 1, 0)


def shear_y(slope: float, center: float = 0.0) -> Op:
  """Moves a column up by `slope` times its distance from `center`."""
  return _affine(1, 0, 0, slope, 1, -slope * center)


def translate_x(pixels: float) -> Op:
  """Moves to the right, by whole pixels: the fraction is cut off."""
  return _affine(1, 0, -int(pixels), 0, 1, 0)


def translate_y(pixels: float) -> Op:
  """Moves down, by whole pixels: the fraction is cut off."""
  return _affine(1, 0, 0, 0, 1, -int(pixels))


def rotate(degrees: float, height: int, width: int) -> Op:
  """Turns counterclockwise around the centre of an image of that size."""
  angle = math.radians(degrees)
  cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
  x, y = width / 2, height / 2
  left, top = x - cos * x + sin * y, y - sin * x - cos * y
  return _affine(cos, -sin, left, sin, cos, top)


def posterize(bits: int) -> Op:
  """Keeps the upper bits of 8."""
  return Op(table=_POSTERIZE, level=bits)


def solarize(threshold: float) -> Op:
  """Inverts grey levels from `threshold` on."""
  return Op(table=_SOLARIZE, level=math.ceil(threshold))


def solarize_add(addend: int) -> Op:
  """Adds to grey levels below 128, up to 255."""
  return Op(table=_SOLARIZE_ADD, level=addend)


def invert() -> Op:
  """Turns v into 255 - v."""
  return solarize(0)


def autocontrast() -> Op:
  """Spreads each channel over 0 to 255."""
  return Op(table=_AUTOCONTRAST)


def equalize() -> Op:
  """Evens out the histogram of each channel."""
  return Op(table=_EQUALIZE)


def brightness(factor: float) -> Op:
  """Blends with black; a factor below 1 darkens."""
  return Op(base=_BLACK, factor=factor)


def contrast(factor: float) -> Op:
  """Blends with the mean grey level."""
  return Op(base=_MEAN, factor=factor)


def color(factor: float) -> Op:
  """Blends with the image without colours."""
  return Op(base=_GREY, factor=factor)


def sharpness(factor: float) -> Op:
  """Blends with the image smoothed; a factor above 1 sharpens."""
  return Op(base=_SMOOTH, factor=factor)


def apply_op(op: Op, image: Array) -> Array:
  """Applies one operation.

  Args:
    op: its fields of the shapes [6] and [].
    image: [H, W, C] uint8, C is 1 or 3. What a warp uncovers is black.

  Returns:
    [H, W, C] uint8.
  """
  op = jax.tree.map(jnp.asarray, op)
  image = _warp(image, op.matrix).astype(jnp.int32)
  # Not `switch`: it would copy the constants of its branches for every image.
  tables = [table(image, op.level) for table in _TABLES]
  image = _lookup(image, jax.lax.select_n(op.table, *tables))
  base = jax.lax.select_n(op.base, *(base(image) for base in _BASES))
  # Pillow blends in float32 and cuts fractions off.
  blended = base + op.factor * (image - base).astype(jnp.float32)
  return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _warp(image: Array, matrix: Array) -> Array:
  """Takes each pixel from the nearest place of the source."""
  height, width = image.shape[:2]
  y, x = np.mgrid[:height, :width].astype(np.int32)
  a, b, c, d, e, f = matrix
  source = [
    (d * x + e * y + f) >> _POINT,
    (a * x + b * y + c) >> _POINT,
  ]
  take = functools.partial(map_coordinates, coordinates=source, order=0)
  return jax.vmap(take, in_axes=-1, out_axes=-1)(image)


def _lookup(image: Array, table: Array) -> Array:
  """Replaces grey levels [H, W, C] by a table's entries [C, 256]."""
  channels = image.shape[-1]
  flat = image.reshape(-1, channels)
  return table[np.arange(channels), flat].reshape(image.shape)


def _posterize(image: Array, bits: Array) -> Array:
  table = _LEVELS & (255 << (8 - bits))
  return jnp.broadcast_to(table, (image.shape[-1], 256))


def _solarize(image: Array, threshold: Array) -> Array:
  table = jnp.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS)
  return jnp.broadcast_to(table, (image.shape[-1], 256))


def _solarize_add(image: Array, addend: Array) -> Array:
  table = jnp.where(_LEVELS < 128, jnp.minimum(_LEVELS + addend, 255), _LEVELS)
  return jnp.broadcast_to(table, (image.shape[-1], 256))


def _autocontrast(image: Array, unused: Array) -> Array:
  """Pillow's table in integers, with its double precision's cuts."""
  del unused
  low, high = (f(image, axis=(0, 1))[:, None] for f in (jnp.min, jnp.max))
  span = jnp.maximum(high - low, 1)
  table = jnp.clip((_LEVELS - low) * 255 // span, 0, 255)
  code = (low * 256 + high) * 256 + _LEVELS
  table -= jnp.isin(code, _cut_levels(), method='binary_search')
  return jnp.where(high > low, table, _LEVELS)


@functools.cache
def _cut_levels() -> np.ndarray:
  """Returns the codes (low, high, level) for which Pillow is one too low.

  It cuts level * scale - low * scale to an integer, with scale = 255 / (high -
  low) in double precision; where that is a whole number, rounding may end just
  below it. There are 12,094 such places, most of them level = high.
  """
  codes = []
  for low in range(255):
    high = np.arange(low + 1, 256)[:, None]
    scale = 255.0 / (high - low)
    cut = (_LEVELS * scale + -low * scale).astype(np.int32)
    wrong = cut < (_LEVELS - low) * 255 // (high - low)
    wrong &= (low < _LEVELS) & (high >= _LEVELS)
    codes.append(((low * 256 + high) * 256 + _LEVELS)[wrong])
  return np.concatenate(codes).astype(np.int32)


def _equalize(image: Array, unused: Array) -> Array:
  del unused
  flat = image.reshape(-1, image.shape[-1])
  count = jax.vmap(lambda v: jnp.bincount(v, length=256), in_axes=1)(flat)
  top = jnp.take_along_axis(count, jnp.max(flat, axis=0)[:, None], axis=1)
  step = (len(flat) - top) // 255
  before = jnp.cumsum(count, axis=1) - count
  table = (step // 2 + before) // jnp.maximum(step, 1)
  return jnp.where(step > 0, jnp.minimum(table, 255), _LEVELS)


def _grey(image: Array) -> Array:
  """Returns luma [H, W, 1] with the weights of ITU-R 601-2, in integers."""
  if image.shape[-1] == 1:
    return image
  weights = np.array([19595, 38470, 7471], np.int32)
  return (jnp.sum(image * weights, -1, keepdims=True) + 2**15) >> 16


def _mean(image: Array) -> Array:
  grey = _grey(image)
  mean = (2 * jnp.sum(grey) + grey.size) // (2 * grey.size)
  return jnp.broadcast_to(mean, image.shape)


def _smooth(image: Array) -> Array:
  """A 3 x 3 mean in which the centre counts 5 times; borders stay."""
  height, width, _ = image.shape
  total = 4 * image[1:-1, 1:-1] + sum(
    image[y : y + height - 2, x : x + width - 2]
    for y in range(3)
    for x in range(3)
  )
  return image.at[1:-1, 1:-1].set((2 * total + 13) // 26)


_TABLES = (_posterize, _solarize, _solarize_add, _autocontrast, _equalize)
_BASES = (
  jnp.zeros_like,
  _mean,
  lambda image: jnp.broadcast_to(_grey(image), image.shape),
  _smooth,
)
