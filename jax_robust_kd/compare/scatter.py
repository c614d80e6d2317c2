"""The picture of a comparison: robust against clean accuracy."""

import importlib.util
from pathlib import Path

MARKERS = 'osD^v<>Phd'


def can_draw() -> bool:
  """Returns whether matplotlib is installed."""
  return importlib.util.find_spec('matplotlib') is not None


def draw(path: Path, labels: list[dict], title: str) -> None:
  """Draws a marker with error bars for each label, and a legend, as PNG.

  Args:
    path: file of the picture.
    labels: of `tables.summarize`, at least one.
    title: what was attacked, and how.
  """
  # Without pyplot: no window, and nothing global is changed.
  from matplotlib.figure import Figure

  columns = -(-len(labels) // 24)
  size = (7.5 + 1.8 * columns, 5.6)
  figure = Figure(figsize=size, dpi=150, layout='constrained')
  axes = figure.add_subplot()
  axes.set(xlabel='clean accuracy, %', ylabel='worst case under attack, %')
  axes.set_title(title, fontsize=10, loc='left', parse_math=False)
  axes.grid(alpha=0.25)
  for number, label in enumerate(labels):
    mean, sd, teacher = label['mean'], label['sd'], label['teacher']
    axes.errorbar(
      mean['clean'],
      mean['worst case'],
      xerr=sd.get('clean'),
      yerr=sd.get('worst case'),
      fmt='*' if teacher else MARKERS[(number + number // 10) % 10],
      color='black' if teacher else f'C{number % 10}',
      markersize=14 if teacher else 7,
      elinewidth=1,
      capsize=2,
      label=label['label'],
    )
  figure.legend(loc='outside right upper', ncols=columns, fontsize=8.5)
  figure.savefig(path, format='png')
