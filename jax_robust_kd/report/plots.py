"""Figures of a report as SVG: they follow the colours of the page.

Each function returns the text of one `<svg>`. Ink and grid are drawn in two
colours that nothing else has, which are replaced by those of the page, so that
a figure is readable on light and on dark paper.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import io
import re
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from jax_robust_kd.runtime.console import printable

_INK, _GRID = '#010203', '#040506'
# Distinct in luminance too, with at least 3:1 against white and near-black.
SERIES = ('#3f7fbf', '#c8641e', '#3d8f5f', '#9a5fb5', '#b0851f', '#6b7280')
_STYLE: dict[Any, Any] = {
  'svg.fonttype': 'none',
  'font.family': 'sans-serif',
  'font.size': 11,
  'text.color': _INK,
  'axes.edgecolor': _GRID,
  'axes.labelcolor': _INK,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.facecolor': 'none',
  'grid.color': _GRID,
  'grid.linewidth': 0.6,
  'xtick.color': _INK,
  'ytick.color': _INK,
  'legend.frameon': False,
  'figure.facecolor': 'none',
}


class Curve(NamedTuple):
  """A line of a plot.

  Attributes:
    label: in the legend.
    x: [n].
    y: [n], in percent.
    low: [n] or None, lower end of the interval.
    high: [n] or None, upper end.
  """

  label: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None


@contextmanager
def _figure(
  title: str, width: float = 6.4, height: float = 3.4
) -> Iterator[tuple[Any, Any, list[str]]]:
  """Yields (figure, axes, svg); the text is put into `svg` at the end."""
  svg: list[str] = []
  with matplotlib.rc_context({**_STYLE, 'svg.hashsalt': title}):
    figure = Figure(figsize=(width, height), layout='constrained')
    yield figure, figure.add_subplot(), svg
    svg.append(_as_svg(figure, title))


def _as_svg(figure: Figure, title: str) -> str:
  file = io.StringIO()
  figure.savefig(file, format='svg', metadata={'Date': None})
  text = file.getvalue()
  text = text[text.index('<svg') :]
  head, rest = text.split('>', 1)
  head = re.sub(r' (width|height)="[^"]*"', '', head)
  head += f' role="img" aria-label="{_escape(title)}"'
  rest = re.sub(r'<metadata>.*?</metadata>', '', rest, flags=re.S)
  text = f'{head}>{rest}'
  return text.replace(_INK, 'currentColor').replace(_GRID, 'var(--grid)')


def _escape(text: str) -> str:
  for mark, name in (('&', 'amp'), ('<', 'lt'), ('>', 'gt'), ('"', 'quot')):
    text = text.replace(mark, f'&{name};')
  return text


def plain(text: str) -> str:
  """Returns text in one line that matplotlib does not read as mathematics."""
  return printable(text).replace('$', r'\$')


def accuracy_bars(
  names: Sequence[str], values: Sequence[float], ends: Sequence[tuple]
) -> str:
  """Accuracy without and under each attack, with 95 % intervals.

  Args:
    names: of the bars.
    values: in percent.
    ends: (low, high) of each.
  """
  with _figure('Accuracy by attack', height=0.6 + 0.42 * len(names)) as (
    _,
    axes,
    svg,
  ):
    rows = np.arange(len(names))
    around = np.abs(np.array(ends).T - np.array(values))
    axes.barh(rows, values, 0.62, color=[SERIES[0], *[SERIES[1]] * len(names)])
    axes.errorbar(values, rows, xerr=around, fmt='none', ecolor=_INK, capsize=3)
    shown = [f'{plain(n)}  {v:.1f}' for n, v in zip(names, values, strict=True)]
    axes.set_yticks(rows, shown)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis='y', visible=False)
    axes.set_xlabel('accuracy in %')
  return svg[0]


def curves(
  title: str,
  lines: Sequence[Curve],
  labels: tuple[str, str],
  marks: Sequence[tuple[float, str]] = (),
  chance: float | None = None,
) -> str:
  """Lines over a common axis, with intervals where they are given.

  Args:
    title: what a screen reader says.
    lines: at most six.
    labels: of the x and y axis.
    marks: (x, text) of vertical lines.
    chance: accuracy of guessing in percent, drawn as a dotted line.
  """
  with _figure(title) as (_, axes, svg):
    for line, colour in zip(lines, SERIES, strict=False):
      axes.plot(
        line.x, line.y, label=plain(line.label), color=colour, marker='o', ms=3
      )
      if line.low is not None and line.high is not None:
        axes.fill_between(
          line.x, line.low, line.high, color=colour, alpha=0.18, lw=0
        )
    for x, text in marks:
      axes.axvline(x, color=_INK, lw=1, ls='--', label=plain(text))
    if chance is not None:
      axes.axhline(chance, color=_INK, lw=1, ls=':', label='chance')
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(fontsize=9)
  return svg[0]


def confusion_matrix(
  title: str, table: np.ndarray, class_names: Sequence[str]
) -> str:
  """Counts of true against predicted classes, as shares of each row.

  Args:
    title: what a screen reader says.
    table: [K, K] counts, rows are true classes.
    class_names: [K].
  """
  count = len(table)
  size = min(2.2 + 0.32 * count, 8.0)
  with _figure(title, size, size) as (_, axes, svg):
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    blue = matplotlib.colors.to_rgb(SERIES[0])
    cells = np.dstack([np.full((count, count), part) for part in blue])
    axes.imshow(np.dstack([cells, share]), interpolation='nearest')
    axes.grid(visible=False)
    axes.set_xlabel('predicted')
    axes.set_ylabel('true')
    if count <= 20:
      names = [plain(name[:12]) for name in class_names]
      axes.set_xticks(range(count), names, rotation=90)
      axes.set_yticks(range(count), names)
      for row, column in zip(*np.nonzero(table), strict=True):
        colour = '#ffffff' if share[row, column] > 0.55 else _INK
        axes.text(
          column, row, str(table[row, column]), ha='center', va='center',
          color=colour, fontsize=8,
        )  # fmt: skip
  return svg[0]


class Dot(NamedTuple):
  """A run in a scatter plot: `x` and `y` with the ends of their intervals."""

  label: str
  x: float
  y: float
  x_ends: tuple[float, float] | None = None
  y_ends: tuple[float, float] | None = None


def scatter(
  title: str, dots: Sequence[Dot], labels: tuple[str, str], log_x: bool = False
) -> str:
  """Dots, one colour and marker for each label."""
  with _figure(title) as (_, axes, svg):
    names = list(dict.fromkeys(dot.label for dot in dots))
    for dot in dots:
      number = names.index(dot.label)
      errors = {
        f'{axis}err': np.abs(np.array(ends)[:, None] - value)
        for axis, value, ends in (
          ('x', dot.x, dot.x_ends), ('y', dot.y, dot.y_ends),
        )
        if ends is not None
      }  # fmt: skip
      axes.errorbar(
        dot.x, dot.y, **errors, fmt='osD^vPX*'[number % 8],
        color=SERIES[number % len(SERIES)], elinewidth=0.8, capsize=2,
        label=plain(dot.label),
      )  # fmt: skip
    handles, found = axes.get_legend_handles_labels()
    once = dict(zip(found, handles, strict=True))
    if log_x:
      axes.set_xscale('log')
    elif all(float(dot.x).is_integer() for dot in dots):
      axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(once.values(), once.keys(), fontsize=9)
  return svg[0]
