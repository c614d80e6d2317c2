"""One encoded image to pixels of the size that the set is read at."""

import io

import numpy as np

from jax_robust_kd.core import UserError

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_CENTRE = 224 / 256  # side of the centre crop over the short side


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
  """Decodes a PNG, JPEG or any other image that Pillow reads.

  Args:
    name: of the image, for messages.
    encoded: the file's content.
    shape: (H, W, C) of the set; 1 channel is grey, 3 are red, green, blue.
    fit: bring an image of another size to it: the short side to H / 0.875,
      then the centre (224 of 256 pixels, as RobustBench evaluates ImageNet).

  Returns:
    [H, W, C] uint8.

  Raises:
    Damaged: it is not an image of 8 bits per channel, or not a whole one.
    UserError: it has another size or more colours than the set.
  """
  from PIL import Image

  try:
    with Image.open(io.BytesIO(encoded)) as image:
      if image.mode[0] in 'IF':
        raise Damaged(f'an image of mode {image.mode}, not 8 bits per channel')
      if shape[-1] == 1 and not is_grey(image.mode):
        raise UserError(
          f'{name}: an image in colour, but others of the set are grey; '
          'convert them all to one kind'
        )
      mode = _MODES[shape[-1]]
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


def is_grey(mode: str) -> bool:
  """Returns whether a Pillow mode has no colour."""
  return mode in ('1', 'L', 'LA')


def _fit(image, size: int):
  from PIL import Image

  if image.size == (size, size):
    return image
  short, scale = min(image.size), round(size / _CENTRE)
  width, height = (max(size, side * scale // short) for side in image.size)
  left, top = round((width - size) / 2), round((height - size) / 2)
  resized = image.resize((width, height), Image.Resampling.BILINEAR)
  return resized.crop((left, top, left + size, top + size))
