"""One encoded image to pixels of the size that the set is read at."""

import io
from typing import Any

import numpy as np

from jax_robust_kd.core import UserError

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
CENTRE = 224 / 256  # side of the centre crop over the short side
FORMATS = ('PNG', 'JPEG')  # no other program is started to open one
_MAX_PIXELS = 100_000_000  # more are not a photograph


class Damaged(Exception):
  """An image that cannot be decoded; the text says why."""


def check_pillow() -> None:
  """Checks that images can be decoded.

  Raises:
    UserError: Pillow is missing.
  """
  try:
    from PIL import Image  # noqa: F401
  except ImportError:
    raise UserError(
      'reading images needs Pillow; run: pip install pillow'
    ) from None


def decode(
  name: str,
  encoded: bytes,
  shape: tuple[int, int, int],
  fit: bool = False,
) -> np.ndarray:
  """Decodes a PNG or JPEG image.

  It is turned as its EXIF orientation says, and what is transparent becomes
  white, unless the set has four channels.

  Args:
    name: of the image, for messages.
    encoded: the file's content.
    shape: (H, W, C) of the set; 1 channel is grey, 3 are red, green, blue.
    fit: bring an image of another size to it: the short side to H / 0.875,
      then the centre (224 of 256 pixels, as RobustBench evaluates ImageNet).

  Returns:
    [H, W, C] uint8.

  Raises:
    Damaged: it is not an image of 8 bits per channel, or not a whole one, or
      it has more than 100 million pixels.
    UserError: it has another size or more colours than the set.
  """
  from PIL import Image, ImageOps

  try:
    with open_image(io.BytesIO(encoded)) as image:
      if image.mode[0] in 'IF':
        raise Damaged(f'an image of mode {image.mode}, not 8 bits per channel')
      if shape[-1] == 1 and not is_grey(image.mode):
        raise UserError(
          f'{name}: an image in colour, but others of the set are grey; '
          'convert them all to one kind'
        )
      mode = _MODES[shape[-1]]
      image = ImageOps.exif_transpose(image)
      if mode != 'RGBA' and image.has_transparency_data:
        image = _on_white(image)
      image = image if image.mode == mode else image.convert(mode)
      if fit:
        image = _fit(image, shape[0])
      pixels = np.asarray(image)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    raise Damaged(str(e) or type(e).__name__) from None
  if pixels.shape[:2] != shape[:2]:
    sizes = sorted({pixels.shape[:2], shape[:2]})
    raise UserError(
      f'{name}: images of different sizes, among them {sizes[0]} and '
      f'{sizes[-1]} (height, width); set data.image_size to bring all to one'
    )
  return pixels.reshape(shape)


def open_image(file: Any) -> Any:
  """Opens a PNG or JPEG image of at most 100 million pixels.

  Args:
    file: a path or a binary file.

  Raises:
    Damaged: it is larger.
    OSError: it is of another format.
  """
  from PIL import Image

  image = Image.open(file, formats=FORMATS)
  _check_size(*image.size)
  return image


def _check_size(width: int, height: int) -> None:
  if width * height > _MAX_PIXELS:
    raise Damaged(
      f'an image of {width} x {height} pixels; at most {_MAX_PIXELS:,} are read'
    )


def _on_white(image: Any) -> Any:
  from PIL import Image

  image = image.convert('RGBA')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image).convert('RGB')


def is_grey(mode: str) -> bool:
  """Returns whether a Pillow mode has no colour."""
  return mode in ('1', 'L', 'LA')


def _fit(image, size: int):
  from PIL import Image

  if image.size == (size, size):
    return image
  short, scale = min(image.size), round(size / CENTRE)
  width, height = (max(size, side * scale // short) for side in image.size)
  left, top = round((width - size) / 2), round((height - size) / 2)
  _check_size(width, height)
  resized = image.resize((width, height), Image.Resampling.BILINEAR)
  return resized.crop((left, top, left + size, top + size))
