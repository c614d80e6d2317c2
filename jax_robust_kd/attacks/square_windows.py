"""Where and in what shape Square Attack changes an image.

Sizes follow the schedule of Andriushchenko et al. 2020, sec. 4.1, as the
reference program has it; the patterns are those of its sec. 4.3 (l_2) and of
the program alone (l_1). Everything here is a constant of the image's shape.
"""

from typing import NamedTuple

import numpy as np

_FIRST_SHARE = 0.8  # of the image's area, in the first window
# Steps after which the window's area halves.
HALVED_AFTER = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
_DECAY = {'l2': 2, 'l1': 4}  # of the pattern, with the distance from its peak


def sizes(height: int, width: int, norm: str) -> np.ndarray:
  """Returns the side of the window after 0, 1.. 9 halvings, [10] pixels.

  In l_2 and l_1 it is odd and at least 3, unless the image is smaller.
  """
  shares = _FIRST_SHARE / 2.0 ** np.arange(len(HALVED_AFTER) + 1)
  side = np.round(np.sqrt(shares * height * width)).astype(np.int32)
  side = np.maximum(side, 1)
  if norm != 'linf':
    side = np.maximum(side, 3)
    side += 1 - side % 2
  return np.minimum(side, min(height, width))


def _unit(values: np.ndarray, norm: str) -> np.ndarray:
  order = 2 if norm == 'l2' else 1
  length = np.linalg.norm(values.ravel(), order)
  return values / length if length else values


def _hill(height: int, width: int, norm: str) -> np.ndarray:
  """Sum of nested squares around the middle, the k-th 1 / k^decay high."""
  rows = np.abs(np.arange(height) - height // 2)
  columns = np.abs(np.arange(width) - width // 2)
  count = max(height, width) // 2 + 1
  layers = 1.0 / np.arange(1, count + 1) ** _DECAY[norm]
  # A pixel lies in all squares whose half side reaches to it.
  height_at = np.cumsum(layers[::-1])[::-1]
  return _unit(height_at[np.maximum(rows[:, None], columns)], norm)


def pattern(side: int, norm: str) -> np.ndarray:
  """Returns a hill above a hole, of unit norm, [side, side]."""
  half = side // 2
  hills = _hill(half, side, norm), -_hill(side - half, side, norm)
  return _unit(np.concatenate(hills), norm)


def patterns(height: int, width: int, norm: str) -> np.ndarray:
  """Returns the pattern of each of `sizes`, in the upper left, [10, n, n].

  n is the shorter side of the image.
  """
  shortest = min(height, width)
  table = np.zeros((len(HALVED_AFTER) + 1, shortest, shortest), np.float32)
  for level, side in enumerate(sizes(height, width, norm)):
    table[level, :side, :side] = pattern(side, norm)
  return table


class Tiling(NamedTuple):
  """The tiles of the first point, numbered by row and column.

  Attributes:
    grid: rows and columns of tiles.
    row: [H] the row of tiles that a pixel is in, column: [W].
    upright: [H, W] the pattern of each tile; 0 outside of all tiles.
    lying: [H, W] the same, each tile transposed.
  """

  grid: tuple[int, int]
  row: np.ndarray
  column: np.ndarray
  upright: np.ndarray
  lying: np.ndarray


def tiling(height: int, width: int, norm: str) -> Tiling:
  """Returns stripes one pixel wide in l_inf, else five by five squares.

  The squares begin at a margin that centres five of them vertically; there are
  more than five if the image is wider, or has fewer than ten pixels a side.
  """
  if norm == 'linf':
    row, column = np.zeros(height, int), np.arange(width)
    ones = np.ones((height, width), np.float32)
    return Tiling((1, width), row, column, ones, ones)
  side = max(height // 5, 1)
  margin = max(height - 5 * side, 0) // 2
  grid = height // side, width // side
  row, y = np.divmod(np.arange(height) - margin, side)
  column, x = np.divmod(np.arange(width) - margin, side)
  covered = np.logical_and.outer(
    (row >= 0) & (row < grid[0]), (column >= 0) & (column < grid[1])
  )
  tile = pattern(side, norm).astype(np.float32)
  upright, lying = (np.where(covered, p[y][:, x], 0) for p in (tile, tile.T))
  row, column = (
    np.clip(k, 0, n - 1) for k, n in zip((row, column), grid, strict=True)
  )
  return Tiling(grid, row, column, upright, lying)
