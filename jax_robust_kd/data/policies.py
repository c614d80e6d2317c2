"""The augmentation policies, as tables of operations.

Which operation an image gets, how strong it is and with which sign follow from
the image's own key. Magnitudes and operations are those of torchvision, applied
as it applies them to Pillow images: warps take the nearest pixel and uncover
black.
"""

from collections.abc import Callable, Sequence
from functools import partial
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import Array, UserError
from jax_robust_kd.data import image_ops
from jax_robust_kd.data.image_ops import Op, apply_op, stack
from jax_robust_kd.data.policy_tables import (
  AUTOAUGMENT,
  COLOR_BIASED,
  EQUAL,
  POLICIES,
  SHAPE_BIASED,
)

# Of EQUAL and AutoAugment's, magnitudes of these are as often negative.
_SIGNED = EQUAL[1:10]
_BINS = 31  # of the magnitude, in RandAugment and TrivialAugment
# Magnitudes of IDBH are continuous; so many values are as good for 8 bits, and
# whole degrees (10 or 30 of them) are still equally frequent.
_FINE_BINS = 300


class Policy(NamedTuple):
  """A row is drawn `repeats` times; each operation in it is applied or not.

  Attributes:
    ops: fields [rows, operations of a row, choices of magnitude and sign, ...];
      choices are equally frequent.
    prob: [rows, operations of a row], of being applied.
    weight: [rows], of being drawn.
    repeats: how many rows an image gets.
  """

  ops: Op
  prob: np.ndarray
  weight: np.ndarray
  repeats: int = 1


def check_policy(name: str) -> None:
  """Raises UserError if there is no such policy; '' is none."""
  if name and name not in POLICIES:
    raise UserError(
      f'data.augment.policy={name!r} is unknown; use one of: '
      f'{", ".join(POLICIES)}'
    )


def make_policy(
  name: str, size: tuple[int, int], num_ops: int = 2, magnitude: int = 9
) -> Policy:
  """Builds a policy for images of one size.

  Args:
    name: one of POLICIES.
    size: height and width.
    num_ops: operations per image, of RandAugment.
    magnitude: 0 to 30, of RandAugment.
  """
  if name in AUTOAUGMENT:
    return _autoaugment(AUTOAUGMENT[name], size)
  if name == 'randaugment':
    policy = _equal(_narrow(size), [magnitude], size)
    return policy._replace(repeats=num_ops)
  if name == 'trivialaugment_wide':
    return _equal(_wide(), range(_BINS), size)
  biased = SHAPE_BIASED if name == 'idbh_svhn' else COLOR_BIASED
  return _idbh(biased, size)


def apply_policy(keys: Array, image: Array, policy: Policy) -> Array:
  """Augments every image by its own key.

  Args:
    keys: [B], one per image.
    image: [B, H, W, C] uint8, of the size that the policy was built for.
    policy: what to choose from.

  Returns:
    [B, H, W, C] uint8.
  """
  return jax.vmap(partial(_apply_one, policy))(keys, image)


def _apply_one(policy: Policy, key: Array, image: Array) -> Array:
  rows, length = policy.prob.shape
  choices = policy.ops.level.shape[2]
  leave = Op(*(field[0] for field in stack([Op()], (1,))))
  for repeat in range(policy.repeats):
    row_key, choice_key, coin_key = jax.random.split(
      jax.random.fold_in(key, repeat), 3
    )
    row = jax.random.choice(row_key, rows, p=jnp.asarray(policy.weight))
    choice = jax.random.randint(choice_key, (length,), 0, choices)
    coin = jax.random.uniform(coin_key, (length,))
    for i in range(length):
      apply = coin[i] < jnp.asarray(policy.prob)[row, i]
      op = jax.tree.map(
        lambda table, default: jnp.where(
          apply, jnp.asarray(table)[row, i, choice[i]], default
        ),
        policy.ops,
        leave,
      )
      image = apply_op(op, image)
  return image


def _operations(size: tuple[int, int]) -> dict[str, Callable[..., Op]]:
  """Returns the operations as functions of their magnitude, 0 the weakest."""
  height, width = size
  return {
    'identity': lambda m: Op(),
    'shear_x': image_ops.shear_x,
    'shear_y': image_ops.shear_y,
    'translate_x': image_ops.translate_x,
    'translate_y': image_ops.translate_y,
    'rotate': lambda m: image_ops.rotate(m, height, width),
    'brightness': lambda m: image_ops.brightness(1 + m),
    'color': lambda m: image_ops.color(1 + m),
    'contrast': lambda m: image_ops.contrast(1 + m),
    'sharpness': lambda m: image_ops.sharpness(1 + m),
    'posterize': lambda m: image_ops.posterize(8 - round(m)),
    'solarize': lambda m: image_ops.solarize(255 - m),
    'autocontrast': lambda m: image_ops.autocontrast(),
    'equalize': lambda m: image_ops.equalize(),
    'invert': lambda m: image_ops.invert(),
    # Of IDBH: by an angle in radians, around the centre; by whole degrees.
    'skew_x': lambda m: image_ops.shear_x(math.tan(m), height / 2),
    'skew_y': lambda m: image_ops.shear_y(math.tan(m), width / 2),
    'turn': lambda m: image_ops.rotate(int(m), height, width),
  }


def _narrow(size: tuple[int, int]) -> dict[str, float]:
  """Returns the largest magnitudes of AutoAugment and RandAugment."""
  shifts = (150 / 331 * size[1], 150 / 331 * size[0])
  return _largest(0.3, shifts, degrees=30, blend=0.9, bits=4)


def _wide() -> dict[str, float]:
  """Returns the largest magnitudes of TrivialAugment; shifts are pixels."""
  return _largest(0.99, (32, 32), degrees=135, blend=0.99, bits=6)


def _largest(slope, shifts, degrees, blend, bits) -> dict[str, float]:
  """Names the largest magnitudes; other operations have no magnitude."""
  return {
    **dict.fromkeys(('shear_x', 'shear_y'), slope),
    **dict(zip(('translate_x', 'translate_y'), shifts, strict=True)),
    'rotate': degrees,
    **dict.fromkeys(('brightness', 'color', 'contrast', 'sharpness'), blend),
    'posterize': bits,
    'solarize': 255,
  }


def _magnitudes(largest: float, bins: int) -> list[float]:
  """Spaces magnitudes evenly from 0, with float32's rounding by PyTorch.

  It counts from the nearer end, which makes the 15th of TrivialAugment's 30
  steps of translation 15 whole pixels, not 16.
  """
  end, i = np.float32(largest), np.arange(bins)
  step = np.float64(end / np.float32(bins - 1))
  spaced = np.where(i < bins // 2, step * i, end - step * (bins - 1 - i))
  return spaced.astype(np.float32).tolist()


def _choices(magnitudes: Sequence[float], signed: bool) -> list[float]:
  """Adds to each magnitude its opposite, or itself if it has no sign."""
  return [s * m for m in magnitudes for s in (1, -1 if signed else 1)]


def _autoaugment(sub_policies, size: tuple[int, int]) -> Policy:
  make, largest = _operations(size), _narrow(size)
  pairs = [half for row in sub_policies for half in (row[:3], row[3:])]
  ops = [
    make[name](m)
    for name, _, level in pairs
    for m in _choices(
      [_magnitudes(largest.get(name, 0), 10)[level]], name in _SIGNED
    )
  ]
  rows = len(sub_policies)
  prob = np.array([p for _, p, _ in pairs]).reshape(rows, 2)
  return Policy(stack(ops, (rows, 2, 2)), prob, np.full(rows, 1 / rows))


def _equal(largest: dict, levels: Sequence[int], size) -> Policy:
  """Draws operations and levels of magnitude equally often."""
  make = _operations(size)
  ops = [
    make[name](m)
    for name in EQUAL
    for m in _choices(
      [_magnitudes(largest.get(name, 0), _BINS)[i] for i in levels],
      name in _SIGNED,
    )
  ]
  rows = len(EQUAL)
  shape = (rows, 1, 2 * len(levels))
  return Policy(stack(ops, shape), np.ones((rows, 1)), np.full(rows, 1 / rows))


def _idbh(biased, size: tuple[int, int]) -> Policy:
  make = _operations(size)
  middles = (np.arange(_FINE_BINS) + 0.5) / _FINE_BINS
  ops = [
    make[name](m)
    for name, _, low, high in biased
    for m in _choices(
      low + (high - low) * middles, name in ('skew_x', 'skew_y', 'turn')
    )
  ]
  rows = len(biased)
  weight = np.array([share for _, share, _, _ in biased])
  shape = (rows, 1, 2 * _FINE_BINS)
  return Policy(stack(ops, shape), np.ones((rows, 1)), weight)
