"""The picture of a comparison: robust against clean accuracy."""

from collections.abc import Iterable
import importlib.util
import math
from pathlib import Path
from typing import NamedTuple

MARKERS = 'osD^v<>Phd'
FAR = 10.0  # points; a label further from its point gets a line to it


class Point(NamedTuple):
  """One label of a comparison; accuracies and deviations in %."""

  label: str
  clean: float
  robust: float
  clean_sd: float = 0.0
  robust_sd: float = 0.0
  teacher: bool = False


def can_draw() -> bool:
  """Returns whether matplotlib is installed."""
  return importlib.util.find_spec('matplotlib') is not None


def draw(path: Path, points: list[Point], title: str) -> None:
  """Draws one marker for each label, with error bars, as PNG.

  Args:
    path: of the picture.
    points: at least one.
    title: what was attacked, and how.
  """
  # Without pyplot: no window, and nothing global is changed.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.5, 5.6), dpi=150, layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.set_xlabel('clean accuracy, %')
  axes.set_ylabel('worst case under attack, %')
  axes.set_title(title, fontsize=10, loc='left')
  axes.grid(alpha=0.25)
  axes.margins(0.14)
  for number, p in enumerate(points):
    axes.errorbar(
        p.clean, p.robust, xerr=p.clean_sd or None, yerr=p.robust_sd or None,
        fmt='*' if p.teacher else MARKERS[number // 10 % len(MARKERS)],
        color=_color(p, number),
        markersize=14 if p.teacher else 7, elinewidth=1, capsize=2,
    )  # fmt: skip
  figure.draw_without_rendering()  # settles where everything is, in pixels
  _write_labels(figure, axes, points)
  figure.savefig(path, format='png')


def _write_labels(figure, axes, points: list[Point]) -> None:
  scale = figure.dpi / 72
  at = [tuple(axes.transData.transform((p.clean, p.robust))) for p in points]
  texts = [
    axes.annotate(p.label, (p.clean, p.robust), fontsize=8.5) for p in points
  ]
  boxes = [text.get_window_extent() for text in texts]
  sizes = [(b.width + 4 * scale, b.height + 2 * scale) for b in boxes]
  bars = [box for p in points for box in _taken(axes, p, scale)]
  inside = axes.get_window_extent()
  corners = place(
    at, sizes, bars, (inside.x0, inside.y0, inside.x1, inside.y1), scale
  )
  for text in texts:
    text.remove()
  for number, (point, here, (x, y), (width, height)) in enumerate(
    zip(points, at, corners, sizes, strict=True)
  ):
    gap_x = max(x - here[0], here[0] - x - width, 0)
    gap_y = max(y - here[1], here[1] - y - height, 0)
    far = math.hypot(gap_x, gap_y) > FAR * scale
    axes.annotate(
        point.label, (point.clean, point.robust), fontsize=8.5,
        color=_color(point, number),
        xytext=(x + 2 * scale, y + scale), textcoords='figure pixels',
        arrowprops=_line(_color(point, number)) if far else None,
    )  # fmt: skip


def _color(point: Point, number: int) -> str:
  return 'black' if point.teacher else f'C{number % 10}'


def _line(color: str) -> dict:
  return dict(arrowstyle='-', lw=0.6, color=color, shrinkA=0, shrinkB=0)


def _taken(axes, p: Point, scale: float) -> list[tuple]:
  """Returns the boxes in pixels that the marker and error bars of a point."""
  (x, y), (right, top) = axes.transData.transform(
    [(p.clean, p.robust), (p.clean + p.clean_sd, p.robust + p.robust_sd)]
  )
  mark = (8 if p.teacher else 5) * scale
  across, up = max(right - x, mark), max(top - y, mark)
  return [
    (x - across, y - 2 * scale, x + across, y + 2 * scale),
    (x - 2 * scale, y - up, x + 2 * scale, y + up),
    (x - mark, y - mark, x + mark, y + mark),
  ]


def overlap(a: tuple, b: tuple) -> float:
  """Returns the area that two boxes (x0, y0, x1, y1) share."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  return max(width, 0) * max(height, 0)


def place(
  at: list[tuple],
  sizes: list[tuple],
  taken: list[tuple],
  inside: tuple,
  scale: float = 1.0,
) -> list[tuple]:
  """Finds a place for each label beside its point.

  One after the other takes the nearest place of a spiral that covers nothing;
  where all are covered, the one that covers least.

  Args:
    at: (x, y) of each point, in pixels.
    sizes: (width, height) of each label.
    taken: boxes (x0, y0, x1, y1) that labels must not cover.
    inside: the box that they must not leave.
    scale: pixels of a point of 1/72 inch.

  Returns:
    The lower left corner of each label.
  """
  boxes, corners = list(taken), []
  for here, size in zip(at, sizes, strict=True):
    best, least = None, math.inf
    for corner in _spiral(here, size, scale):
      box = (*corner, corner[0] + size[0], corner[1] + size[1])
      outside = size[0] * size[1] - overlap(box, inside)
      covered = outside + sum(overlap(box, other) for other in boxes)
      if covered < least - 1e-6:
        best, least = box, covered
      if covered < 1e-6:
        break
    assert best is not None
    boxes.append(best)
    corners.append(best[:2])
  return corners


def _spiral(here: tuple, size: tuple, scale: float) -> Iterable[tuple]:
  """Yields lower left corners around a point, nearer ones first."""
  for ring in range(30):
    gap = (6 + 5 * ring) * scale
    for turn in range(16):
      angle = math.pi * (turn / 8 + 0.25)
      x = here[0] + math.cos(angle) * (gap + size[0] / 2)
      y = here[1] + math.sin(angle) * (gap + size[1] / 2)
      yield x - size[0] / 2, y - size[1] / 2
