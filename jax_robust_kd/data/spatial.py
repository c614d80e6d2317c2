"""Crops, flips and covered boxes, each by the image's own key.

All take keys [B] and images [B, H, W, C] of any type, and return images of the
same shape and type.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
import numpy as np

from jax_robust_kd.core import Array, UserError


def random_crop(keys: Array, image: Array, pad: int) -> Array:
  """Pads with `pad` zeros on each side and cuts a random window of old size.

  Args:
    keys: [B], one per image.
    image: [B, H, W, C].
    pad: pixels.
  """
  size = image.shape[1:]
  padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

  def cut(key, one):
    top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
    return jax.lax.dynamic_slice(one, (top, left, 0), size)

  return jax.vmap(cut)(keys, padded)


def random_shift(keys: Array, image: Array, largest: int) -> Array:
  """Moves a random window to a random place in a black image: Cropshift.

  Li & Spratling 2023, "Data augmentation alone can improve adversarial
  training": height and width lose 0 to `largest` pixels together.

  Args:
    keys: [B], one per image.
    image: [B, H, W, C].
    largest: pixels, fewer than the image has.

  Raises:
    UserError: it could leave nothing of the image.
  """
  size = image.shape[1:3]
  if largest >= min(size):
    raise UserError(
      f'data.augment.crop_shift={largest} may leave nothing of images of '
      f'{size[0]} x {size[1]} pixels; use at most {min(size) - 1}'
    )

  def move(key, one):
    loss_key, share_key, source_key, target_key = jax.random.split(key, 4)
    loss = jax.random.randint(loss_key, (), 0, largest + 1)
    share = jax.random.randint(share_key, (), 0, loss + 1)
    lost = jnp.stack([loss - share, share])
    source = jax.random.randint(source_key, (2,), 0, lost + 1)
    target = jax.random.randint(target_key, (2,), 0, lost + 1)
    rows, columns = np.array(size) - lost
    top, left = target
    kept = inside(size[0], size[1], top, left, rows, columns)
    moved = jnp.roll(one, target - source, (0, 1))
    return jnp.where(kept[..., None], moved, jnp.zeros_like(one))

  return jax.vmap(move)(keys, image)


def random_resized_crop(keys: Array, image: Array, smallest: float) -> Array:
  """Enlarges a random window to the old size, bilinearly.

  Inception's crop (Szegedy et al. 2015, arXiv:1409.4842, section 6), drawn as
  torchvision draws it: a share of the area from `smallest` to 1, an aspect
  ratio from 3/4 to 4/3. What lies outside of the window is not seen.

  Args:
    keys: [B], one per image.
    image: [B, H, W, C].
    smallest: share of the area, in (0, 1].
  """
  size = image.shape[1:3]

  def view(key, one):
    top, left, rows, columns = _random_box(
      key, size, size, (smallest, 1.0), (3 / 4, 4 / 3), size
    )
    return resize_window(one, top, left, rows, columns)

  return jax.vmap(view)(keys, image)


def resize_window(image: Array, top, left, rows, columns) -> Array:
  """Enlarges a window of an image [H, W, C] to the image's size."""
  height, width, _ = image.shape
  grid = jnp.meshgrid(
    _sample_places(top, rows, height),
    _sample_places(left, columns, width),
    indexing='ij',
  )
  sample = lambda channel: map_coordinates(channel, grid, order=1)  # noqa: E731
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _sample_places(start: Array, length: Array, size: int) -> Array:
  """Returns [size] places in start .. start + length - 1, in pixels."""
  place = (np.arange(size) + 0.5) / size * length - 0.5
  return start + jnp.clip(place, 0, length - 1)


def random_flip(keys: Array, image: Array) -> Array:
  """Mirrors left and right with probability 1/2; keys [B], [B, H, W, C]."""
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flip[:, None, None, None], image[:, :, ::-1], image)


def random_cutout(
  keys: Array, image: Array, size: int, fill: float = 0.0
) -> Array:
  """Covers one square; DeVries & Taylor 2017, arXiv:1708.04552.

  The centre is uniform over the image, so the square may overhang.

  Args:
    keys: [B], one per image.
    image: [B, H, W, C].
    size: side of the square, pixels.
    fill: what it is covered with, in the units of `image`.
  """
  height, width = image.shape[1:3]

  def outside(key):
    center = jax.random.randint(
      key, (2,), 0, jnp.array([height, width], jnp.int32)
    )
    top, left = center - size // 2
    return ~inside(height, width, top, left, size, size)

  keep = jax.vmap(outside)(keys)[..., None]
  return jnp.where(keep, image, jnp.asarray(fill, image.dtype))


def random_erase(
  keys: Array, image: Array, prob: float, area: float, fill: float = 0.0
) -> Array:
  """Covers a box inside the image; Zhong et al. 2020, arXiv:1708.04896.

  Drawn as torchvision draws it: a share of the area from 0.02 to `area`, an
  aspect ratio from 0.3 to 3.3.

  Args:
    keys: [B], one per image.
    image: [B, H, W, C].
    prob: of covering anything.
    area: largest share of the image, in [0.02, 1].
    fill: what it is covered with, in the units of `image`.
  """
  height, width = size = image.shape[1:3]

  def outside(key):
    coin_key, box_key = jax.random.split(key)
    box = _random_box(
      box_key, size, (height - 1, width - 1), (0.02, area), (0.3, 3.3), (0, 0)
    )
    erase = jax.random.bernoulli(coin_key, prob)
    return ~(erase & inside(*size, *box))

  keep = jax.vmap(outside)(keys)[..., None]
  return jnp.where(keep, image, jnp.asarray(fill, image.dtype))


def _random_box(key, size, largest, area, ratio, otherwise):
  """Returns top, left, rows and columns of a box within an image.

  Of ten boxes the first that fits; both ratios are uniform, the aspect ratio
  in its logarithm.

  Args:
    key: a key.
    size: height and width of the image.
    largest: rows and columns that fit.
    area: smallest and largest share of the image.
    ratio: smallest and largest rows / columns.
    otherwise: rows and columns if none of them fits.
  """
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  pixels = (
    size[0]
    * size[1]
    * jax.random.uniform(area_key, (10,), minval=area[0], maxval=area[1])
  )
  low, high = np.log(ratio)
  aspect = jnp.exp(
    jax.random.uniform(ratio_key, (10,), minval=low, maxval=high)
  )
  boxes = jnp.sqrt(jnp.stack([pixels * aspect, pixels / aspect], -1))
  boxes = jnp.round(boxes).astype(jnp.int32)
  fits = jnp.all((boxes > 0) & (boxes <= np.array(largest)), axis=-1)
  box = jnp.where(fits.any(), boxes[jnp.argmax(fits)], np.array(otherwise))
  place = jax.random.randint(place_key, (2,), 0, np.array(size) - box + 1)
  return *place, *box


def inside(height, width, top, left, rows, columns) -> Array:
  """Returns [H, W] bool: is the pixel in the box, wherever the box may lie?"""
  y = jnp.arange(height)[:, None]
  x = jnp.arange(width)[None, :]
  return (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
