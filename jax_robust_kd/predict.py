"""The classes of image files, as a command."""

from pathlib import Path

import numpy as np

from jax_robust_kd import classifier
from jax_robust_kd.commandline import Args
from jax_robust_kd.core import UserError
from jax_robust_kd.data.decode import Damaged, check_pillow, decode


def run(args: Args) -> int:
  """Prints a line for each file; returns the exit code of the command."""
  check_pillow()
  model = classifier.load(args.model, args.checkpoint)
  images = np.stack(
    [read_image(path, model.image_shape) for path in args.files]
  )
  _, probabilities = model.predict(images)
  for path, row in zip(args.files, probabilities, strict=True):
    best = np.argsort(-row, kind='stable')[: args.top]
    text = ', '.join(
      f'{model.class_names[i]} {100 * row[i]:.1f} %' for i in best
    )
    print(f'{path}: {text}')
  return 0


def read_image(path: str, shape: tuple[int, ...]) -> np.ndarray:
  """Reads an image as one of a training set is read, [H, W, C] uint8.

  Args:
    path: of the file.
    shape: (H, W, C); an image of another size is brought to it.

  Raises:
    UserError: it is not there, or not an image.
  """
  if not shape:
    raise UserError(
      '--model was trained by a version that did not keep the size of its '
      'images; call jax_robust_kd.load(...) on arrays instead'
    )
  height, width, channels = shape
  try:
    content = Path(path).read_bytes()
    return decode(path, content, (height, width, channels), fit=True)
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}') from None
  except Damaged as error:
    raise UserError(f'{path} cannot be decoded: {error}') from None
