"""Augmentation on the device, inside the compiled step.

The order is fixed: crop, flip, policy, cutout and erasing, then mixing. All but
mixing follows from an image's own key, so it does not depend on the batch or
the device that the image is on. Mixing pairs the images 2k and 2k + 1 of the
global batch, which is in random order already; devices hold contiguous and even
parts of it, so that pairs never cross devices. All shapes are static.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Batch, UserError, fold_in, image_keys
from jax_robust_kd.data.policies import apply_policy, check_policy, make_policy
from jax_robust_kd.data.policy_tables import IDBH
from jax_robust_kd.data.spatial import (
  inside,
  random_crop,
  random_cutout,
  random_erase,
  random_flip,
  random_resized_crop,
  random_shift,
)

# What an image's key is folded with, so that switching one augmentation off
# leaves the others as they were; and the same for the key of the mixing.
_CROP, _FLIP, _CUTOUT, _POLICY, _ERASE = range(5)
_LAMBDA, _CENTER, _COIN = range(3)


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


def mix(
  key: Array,
  image: Array,
  target: Array,
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
  box = inside(height, width, top, left, rows, columns)
  return box.astype(jnp.float32)


def _neighbour(x: Array) -> Array:
  """Swaps 2k and 2k + 1 along the first dimension."""
  pairs = x.reshape(-1, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)


def make_augment(
  *,
  num_classes: int,
  crop_pad: int = 0,
  crop_shift: int = 0,
  resized_crop: float = 0.0,
  flip: bool = False,
  policy: str = '',
  policy_ops: int = 2,
  policy_magnitude: int = 9,
  cutout: int = 0,
  erase_prob: float = 0.0,
  erase_area: float = 0.33,
  mixup_alpha: float = 0.0,
  cutmix_alpha: float = 0.0,
  cutmix_prob: float = 0.5,
  cutout_fill: float = 0.0,
  label_smoothing: float = 0.0,
) -> Callable[[Array, Array, Array, Array], Batch]:
  """Returns (key, index [B], image [B, H, W, C] uint8, label [B]) -> Batch.

  `key` is the key of the step and `index` the place of each image in the
  global batch: the result does not depend on the number of devices. Teacher
  and student see the same result. With all off, it is image / 255 and one-hot.

  Args:
    num_classes: K.
    crop_pad, crop_shift, resized_crop: of `random_crop`, `random_shift` or
      `random_resized_crop`; at most one is not 0.
    flip: whether to mirror at random.
    policy, policy_ops, policy_magnitude: of `make_policy`; '' is no policy.
    cutout, erase_prob, erase_area: of `random_cutout` and `random_erase`.
    mixup_alpha, cutmix_alpha, cutmix_prob: of `mix`.
    cutout_fill: what squares and boxes are covered with, in [0, 1].
    label_smoothing: of `one_hot`.

  Raises:
    UserError: a value is out of its range, or settings exclude each other.
  """
  options = dict(locals())
  _check_options(options)
  options |= IDBH.get(policy, {})

  def apply(key: Array, index: Array, image: Array, label: Array) -> Batch:
    keys = image_keys(jax.random.fold_in(key, 0), index)
    image = _augment_images(keys, image, options)
    target = one_hot(label, num_classes, label_smoothing)
    if mixup_alpha or cutmix_alpha:
      alphas = (mixup_alpha, cutmix_alpha, cutmix_prob)
      image, target = mix(jax.random.fold_in(key, 1), image, target, *alphas)
    return Batch(image=image, target=target)

  return apply


def _augment_images(keys: Array, image: Array, o: dict) -> Array:
  """Does all but mixing; returns float32 in [0, 1]."""
  crop_keys = fold_in(keys, _CROP)
  if o['crop_pad']:
    image = random_crop(crop_keys, image, o['crop_pad'])
  if o['crop_shift']:
    image = random_shift(crop_keys, image, o['crop_shift'])
  if o['resized_crop']:
    image = random_resized_crop(crop_keys, image, o['resized_crop'])
  if o['flip']:
    image = random_flip(fold_in(keys, _FLIP), image)
  if o['policy']:
    size = (image.shape[1], image.shape[2])
    policy = make_policy(
      o['policy'], size, o['policy_ops'], o['policy_magnitude']
    )
    image = apply_policy(fold_in(keys, _POLICY), image, policy)
  image, fill = to_float(image), o['cutout_fill']
  if o['cutout']:
    image = random_cutout(fold_in(keys, _CUTOUT), image, o['cutout'], fill)
  if o['erase_prob']:
    erase = (o['erase_prob'], o['erase_area'], fill)
    image = random_erase(fold_in(keys, _ERASE), image, *erase)
  return image


def _check_options(options: dict) -> None:
  """Checks ranges, the policy's name and what excludes each other."""
  highest = dict.fromkeys(
    ('resized_crop', 'erase_prob', 'erase_area', 'cutmix_prob', 'cutout_fill',
     'label_smoothing'), 1,
  ) | {'policy_magnitude': 30}  # fmt: skip
  for name, value in options.items():
    high = highest.get(name)
    if name == 'policy':
      check_policy(value)
    elif value < 0 or (high and value > high) or value != value:
      wanted = f'0 to {high}' if high else '0 (off) or more'
      raise UserError(f'data.augment.{name}={value} is wrong; use {wanted}')
  crops = ('crop_pad', 'crop_shift', 'resized_crop')
  given = [name for name in crops if options[name]]
  if options['policy'] in IDBH:
    for name in (*crops, 'erase_prob'):
      if options[name]:
        raise UserError(
          f'data.augment.policy={options["policy"]!r} crops and erases by '
          f'itself; set data.augment.{name}=0'
        )
  if len(given) > 1:
    raise UserError(
      f'data.augment.{given[0]} and data.augment.{given[1]} are both on; set '
      'one of them to 0'
    )
