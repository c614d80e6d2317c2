"""Augmentation on the device, inside the compiled step.

The order is fixed: crop, flip, cutout, then mixing. Crop, flip and cutout of an
image follow from its own key alone, so they do not depend on the batch or the
device that it is on. Mixing pairs the images 2k and 2k + 1 of the global batch,
which is in random order already; devices hold contiguous and even parts of it,
so that pairs never cross devices. All shapes are static.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Batch, UserError, fold_in, image_keys

# What an image's key is folded with, so that switching one augmentation off
# leaves the others as they were; and the same for the key of the mixing.
_CROP, _FLIP, _CUTOUT = 0, 1, 2
_LAMBDA, _CENTER, _COIN = 0, 1, 2


def to_float(image: Array) -> Array:
  """Turns uint8 images into float32 in [0, 1].

  Compiled, XLA multiplies by 1/255, which differs from NumPy's division in the
  last bit; use this function wherever images are compared bit by bit.
  """
  return image.astype(jnp.float32) / 255


def one_hot(label: Array, num_classes: int, smoothing: float = 0.0) -> Array:
  """Returns class probabilities [B, K] of labels [B].

  With smoothing s a label's class has 1 - s + s / K and every other s / K
  (Szegedy et al. 2016, arXiv:1512.00567, section 7).
  """
  target = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
  if not smoothing:
    return target
  return target * (1 - smoothing) + smoothing / num_classes


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
    return ~_inside(height, width, top, left, size, size)

  keep = jax.vmap(outside)(keys)[..., None]
  return jnp.where(keep, image, jnp.asarray(fill, image.dtype))


def mix(
  key: Array,
  image: Array,
  target: Array,
  *,
  mixup_alpha: float,
  cutmix_alpha: float,
  cutmix_prob: float,
) -> tuple[Array, Array]:
  """Mixes each image and target with its neighbour's: mixup or CutMix.

  mixup (Zhang et al. 2018, arXiv:1710.09412, eq. 1) takes lambda of the image
  and 1 - lambda of the neighbour. CutMix (Yun et al. 2019, arXiv:1905.04899,
  eq. 1 and 2) pastes a box of the neighbour, of area 1 - lambda before it is
  clipped to the image; the target's lambda is what is left after clipping.
  Lambda ~ Beta(alpha, alpha), one of both for the whole batch.

  Args:
    key: one for the whole global batch.
    image: [B, H, W, C], B even.
    target: [B, K].
    mixup_alpha: 0 for no mixup.
    cutmix_alpha: 0 for no CutMix.
    cutmix_prob: share of batches that CutMix gets when both are on.

  Returns:
    Mixed images and targets, of the same shapes.
  """
  if len(image) % 2:
    raise UserError(
      f'data.batch_size gives a device {len(image)} images; mixup and CutMix '
      'need an even number'
    )
  height, width = image.shape[1:3]
  own, share = _mixing_weight(
    key, (height, width), mixup_alpha, cutmix_alpha, cutmix_prob
  )
  own = own[..., None]
  mixed = own * image + (1 - own) * _neighbour(image)
  return (
    # A backend may round the sum of both weights to a little more than 1.
    jnp.clip(mixed, 0.0, 1.0),
    share * target + (1 - share) * _neighbour(target),
  )


def _mixing_weight(
  key: Array,
  size: tuple[int, int],
  mixup_alpha: float,
  cutmix_alpha: float,
  cutmix_prob: float,
) -> tuple[Array, Array]:
  """Returns the weight of an image's own pixels [H, W] and their mean."""
  lambda_key = jax.random.fold_in(key, _LAMBDA)
  center_key = jax.random.fold_in(key, _CENTER)
  if mixup_alpha and cutmix_alpha:
    coin = jax.random.fold_in(key, _COIN)
    cut = jax.random.bernoulli(coin, float(cutmix_prob))
    alpha = jnp.where(cut, float(cutmix_alpha), float(mixup_alpha))
  else:
    cut = jnp.asarray(cutmix_alpha > 0)
    alpha = float(mixup_alpha or cutmix_alpha)
  lam = jax.random.beta(lambda_key, alpha, alpha)
  box = _cutmix_box(center_key, lam, *size)
  own = jnp.where(cut, 1.0 - box, lam)
  return own, jnp.where(cut, 1.0 - jnp.mean(box), lam)


def _cutmix_box(key: Array, lam: Array, height: int, width: int) -> Array:
  """Returns [H, W], 1 inside the box; sides are sqrt(1 - lam) of the image."""
  side = jnp.sqrt(1 - lam)
  rows, columns = (
    jnp.floor(side * n).astype(jnp.int32) for n in (height, width)
  )
  center = jax.random.randint(
    key, (2,), 0, jnp.array([height, width], jnp.int32)
  )
  top, left = center[0] - rows // 2, center[1] - columns // 2
  inside = _inside(height, width, top, left, rows, columns)
  return inside.astype(jnp.float32)


def _inside(height, width, top, left, rows, columns) -> Array:
  """Returns [H, W] bool: is the pixel in the box, wherever the box may lie?"""
  y = jnp.arange(height)[:, None]
  x = jnp.arange(width)[None, :]
  return (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)


def _neighbour(x: Array) -> Array:
  """Swaps 2k and 2k + 1 along the first dimension."""
  pairs = x.reshape(-1, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)


def augment(
  keys: Array,
  mix_key: Array,
  image: Array,
  label: Array,
  *,
  num_classes: int,
  crop_pad: int = 0,
  flip: bool = False,
  cutout: int = 0,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  cutmix_prob: float = 0.5,
  cutout_fill: float = 0.0,
  label_smoothing: float = 0.0,
) -> Batch:
  """Augments a batch; with everything off it is image / 255 and one-hot.

  Args:
    keys: [B], one per image.
    mix_key: one for the whole global batch, the same on all devices.
    image: [B, H, W, C] uint8.
    label: [B] int.
    num_classes: K.
    crop_pad: pixels of zero padding before a random crop; 0 is off.
    flip: whether to mirror at random.
    cutout: side of a covered square, pixels; 0 is off.
    mixup_alpha: of Beta(alpha, alpha); 0 is off.
    cutmix_alpha: the same for CutMix.
    cutmix_prob: share of batches that CutMix gets when both are on.
    cutout_fill: what the square is covered with, in [0, 1].
    label_smoothing: in [0, 1).

  Returns:
    Images float32 in [0, 1] and class probabilities.
  """
  image = to_float(image)
  target = one_hot(label, num_classes, label_smoothing)
  if crop_pad:
    image = random_crop(fold_in(keys, _CROP), image, crop_pad)
  if flip:
    image = random_flip(fold_in(keys, _FLIP), image)
  if cutout:
    keys_cutout = fold_in(keys, _CUTOUT)
    image = random_cutout(keys_cutout, image, cutout, cutout_fill)
  if mixup_alpha or cutmix_alpha:
    image, target = mix(
      mix_key,
      image,
      target,
      mixup_alpha=mixup_alpha,
      cutmix_alpha=cutmix_alpha,
      cutmix_prob=cutmix_prob,
    )
  return Batch(image=image, target=target)


def make_augment(
  *,
  num_classes: int,
  crop_pad: int = 0,
  flip: bool = False,
  cutout: int = 0,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  cutmix_prob: float = 0.5,
  cutout_fill: float = 0.0,
  label_smoothing: float = 0.0,
) -> Callable[[Array, Array, Array, Array], Batch]:
  """Returns (key, index [B], image, label) -> Batch; see `augment`.

  `key` is the key of the step and `index` the place of each image in the
  global batch: the result does not depend on the number of devices. Teacher
  and student see the same result.

  Raises:
    UserError: a value is out of its range.
  """
  options = {
    'crop_pad': crop_pad,
    'cutout': cutout,
    'mixup_alpha': mixup_alpha,
    'cutmix_alpha': cutmix_alpha,
    'cutmix_prob': cutmix_prob,
    'cutout_fill': cutout_fill,
    'label_smoothing': label_smoothing,
  }
  for name, value in options.items():
    _check_option(name, value)

  def apply(key: Array, index: Array, image: Array, label: Array) -> Batch:
    keys = image_keys(jax.random.fold_in(key, 0), index)
    mix_key = jax.random.fold_in(key, 1)
    return augment(
        keys, mix_key, image, label, num_classes=num_classes, flip=flip,
        **options,
    )  # fmt: skip

  return apply


def _check_option(name: str, value: float) -> None:
  high = {'cutmix_prob': 1, 'cutout_fill': 1, 'label_smoothing': 1}.get(name)
  if value < 0 or (high and value > high) or value != value:
    wanted = f'0 to {high}' if high else '0 (off) or more'
    raise UserError(f'data.augment.{name}={value} is wrong; use {wanted}')
