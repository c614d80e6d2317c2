"""Draws a contact sheet: what every augmentation does to real images."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.data.augment import make_augment
from jax_robust_kd.data.lazy import Reading
from jax_robust_kd.data.policy_tables import IDBH, POLICIES
from jax_robust_kd.data.source import load

_LABEL_WIDTH, _GAP = 150, 2  # pixels


def rows_for(side: int) -> dict[str, dict]:
  """Returns the options of every row for square images of `side` pixels."""
  return {
    'no augmentation': {},
    'crop_pad, flip': dict(crop_pad=max(1, side // 8), flip=True),
    'crop_shift': dict(crop_shift=side * 10 // 32),
    'resized_crop': dict(resized_crop=0.08),
    **{
      name: dict(policy=name)
      for name in POLICIES
      if name not in IDBH or IDBH[name]['crop_shift'] < side
    },
    'cutout': dict(cutout=side // 2),
    'erase_prob 1': dict(erase_prob=1.0),
    'mixup': dict(mixup_alpha=1.0),
    'cutmix': dict(cutmix_alpha=1.0),
  }


def views(image: np.ndarray, options: dict, seed: int) -> np.ndarray:
  """Augments images [N, H, W, C] uint8, N even; returns uint8."""
  run = jax.jit(make_augment(num_classes=len(image), **options))
  index = np.arange(len(image))
  batch = run(jax.random.key(seed), index, image, np.zeros_like(index))
  return np.asarray(np.round(np.asarray(batch.image) * 255), np.uint8)


def draw(rows: dict[str, np.ndarray], side: int):
  """Arranges labelled rows of images [N, H, W, C]; returns a Pillow image.

  Args:
    rows: label -> images of one row.
    side: pixels that an image is enlarged to.
  """
  from PIL import Image, ImageDraw

  pitch = side + _GAP
  columns = max(len(row) for row in rows.values())
  size = (_LABEL_WIDTH + columns * pitch, len(rows) * pitch)
  sheet = Image.new('RGB', size, 'white')
  pen = ImageDraw.Draw(sheet)
  for y, (label, row) in enumerate(rows.items()):
    pen.text((4, y * pitch + side // 2 - 6), label, fill='black')
    for x, one in enumerate(row):
      picture = Image.fromarray(one.squeeze()).resize(
        (side, side), Image.Resampling.NEAREST
      )
      sheet.paste(picture, (_LABEL_WIDTH + x * pitch, y * pitch))
  return sheet


def run(args: SimpleNamespace) -> int:
  """Runs the command; returns its exit code."""
  if args.images < 2 or args.images % 2:
    raise UserError(
      f'--images={args.images} cannot be mixed in pairs; use an even number'
    )
  out = Path(args.out)
  reading = Reading(image_size=args.image_size)
  train = load(args.name, args.data_dir, reading=reading).train
  image = np.asarray(train.image[np.arange(args.images) % len(train.label)])
  rows = {
    label: views(image, options, args.seed)
    for label, options in rows_for(image.shape[1]).items()
  }
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(rows, args.side).save(out)
  except (OSError, ValueError) as error:
    raise UserError(f'--out {out} cannot be written: {error}') from None
  print(f'{out}: {len(rows)} rows of {args.images} images')
  return 0
