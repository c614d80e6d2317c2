"""Strips of a report: image, adversarial image, difference, predictions."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from jax_robust_kd.report.evidence import Evidence
from jax_robust_kd.report.numbers import choose_strips

_SIDE = 96  # pixels of a side at most; smaller images are enlarged by the page


class Strip(NamedTuple):
  """One image, clean and attacked.

  Attributes:
    row: which test image.
    label: name of the true class.
    attack: the one that left the largest margin.
    pictures: data URLs of image, adversarial image, magnified difference.
    clean: 'class (margin)' without attack.
    attacked: the same under attack.
    times: by what the difference was multiplied.
  """

  row: int
  label: str
  attack: str
  pictures: tuple[str, str, str]
  clean: str
  attacked: str
  times: float


def make_strips(found: Evidence) -> dict[str, list[Strip]]:
  """Returns kind -> strips, chosen by `choose_strips`."""
  if not found.attacked:
    return {}
  count = len(found.label)
  clean = found.logits.argmax(axis=1) == found.label
  margins = {}
  for name, shown in found.attacked.items():
    margins[name] = np.full(count, np.nan, np.float32)
    margins[name][shown.rows] = margin_of(shown.logits, found.label[shown.rows])
  names = list(margins)
  table = np.stack(list(margins.values()))
  attacked = np.isfinite(table).any(axis=0)
  table = np.where(np.isfinite(table), table, -np.inf)
  largest = np.where(attacked, table.max(axis=0), np.nan)
  which = table.argmax(axis=0)
  return {
    kind: [_strip(found, int(row), names[which[row]]) for row in rows]
    for kind, rows in choose_strips(clean, largest).items()
  }


def margin_of(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns [N] largest wrong logit minus the right one."""
  rows = np.arange(len(label))
  wrong = logits.astype(np.float64)
  right = wrong[rows, label].copy()
  wrong[rows, label] = -np.inf
  return (wrong.max(axis=1) - right).astype(np.float32)


def _strip(found: Evidence, row: int, attack: str) -> Strip:
  shown = found.attacked[attack]
  place = int(np.flatnonzero(shown.rows == row)[0])
  image = found.image[row].astype(np.float32) / 255
  adv = shown.adv[place]
  difference = adv - image
  largest = float(np.abs(difference).max()) or 1.0
  times = 0.5 / largest
  label = found.label[row : row + 1]

  def predicted(logits: np.ndarray) -> str:
    margin = float(margin_of(logits[None], label)[0])
    return f'{found.class_names[int(logits.argmax())]} ({-margin:+.2f})'

  return Strip(
    row,
    found.class_names[int(label[0])],
    attack,
    (as_url(image), as_url(adv), as_url(0.5 + times * difference)),
    predicted(found.logits[row]),
    predicted(shown.logits[place]),
    times,
  )


def as_url(image: np.ndarray) -> str:
  """Returns a [H, W, C] image in [0, 1] as a PNG data URL."""
  file = io.BytesIO()
  as_picture(image).save(file, 'PNG', optimize=True)
  return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def as_picture(image: np.ndarray) -> Image.Image:
  """Returns a [H, W, C] image in [0, 1] of one or three channels."""
  values = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
  picture = Image.fromarray(values[..., 0] if image.shape[-1] == 1 else values)
  picture.thumbnail((_SIDE, _SIDE))
  return picture


def sheet(
  images: np.ndarray, columns: int = 20, most: int = 400
) -> Image.Image:
  """Returns the first images [N, H, W, C] side by side, for a PNG file."""
  pictures = [as_picture(image) for image in images[:most]]
  width, height = pictures[0].size
  rows = -(-len(pictures) // columns)
  page = Image.new(
    'RGB', (columns * (width + 1), rows * (height + 1)), (127, 127, 127)
  )
  for number, picture in enumerate(pictures):
    row, column = divmod(number, columns)
    page.paste(
      picture.convert('RGB'), (column * (width + 1), row * (height + 1))
    )
  return page
