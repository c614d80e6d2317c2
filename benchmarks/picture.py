"""Draws docs/cifar10.svg, robust against clean accuracy, from cifar_table.csv.

  python -m benchmarks.picture

needs matplotlib (`pip install -e '.[report]'`).
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parent.parent
TABLE = ROOT / 'benchmarks/cifar_table.csv'
OUT = ROOT / 'docs/cifar10.svg'
COLUMN = 'worst case'

# Each group with its colour and marker; a method's place is that of its name.
GROUPS = {
  'distillation, attacked in training': ('#0072b2', 'o'),
  'no teacher, attacked in training': ('#d55e00', 's'),
  'never attacked in training': ('#707070', '^'),
}
METHODS = {
  'saad': 0, 'gacd': 0, 'igdm': 0, 'iad': 0, 'akd2': 0, 'rslad': 0,
  'advfunmatch': 0, 'adaiad': 0, 'darwin': 0, 'ard': 0,
  'mtard': 0, 'dgad': 0, 'pgd_at': 1, 'trades': 1, 'mart': 1,
  'peeraid': 0, 'natural': 2, 'kd': 2, 'mixacm': 2, 'kdiga': 2, 'fitnets': 2,
  'crd': 2, 'at': 2, 'rrm': 2,
}  # fmt: skip
# Where a name stands beside its mark, in points, if not on its right.
PLACES = {
  'saad': (-10, 8), 'gacd': (-12, 8), 'rslad': (-12, -15), 'akd2': (-33, -6),
  'iad': (-23, -4), 'advfunmatch': (5, 4), 'adaiad': (-14, -15),
  'dgad': (-34, -5),
  'darwin': (-43, -5), 'trades': (-30, 8), 'mixacm': (-50, -4),
  'natural': (-46, -4),
}  # fmt: skip


class Mean(NamedTuple):
  """Accuracy in %, mean of the seeds."""

  clean: float
  robust: float


def read(path: Path = TABLE) -> dict[str, Mean]:
  """Returns the mean of each label of the table."""
  seeds: dict[str, list[tuple[float, float]]] = {}
  with path.open() as file:
    for row in csv.DictReader(file):
      pair = float(row['clean']), float(row[COLUMN])
      seeds.setdefault(row['label'], []).append(pair)
  return {label: Mean(*np.mean(pairs, 0)) for label, pairs in seeds.items()}


def draw(means: dict[str, Mean], out: Path = OUT) -> None:
  """Draws one mark for each of METHODS."""
  import matplotlib

  matplotlib.rcParams.update(
    {
      'svg.hashsalt': 'one file for one table',
      'font.size': 10,
      'axes.spines.top': False,
      'axes.spines.right': False,
    }
  )
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7.2, 4.2), layout='constrained')
  axes = figure.subplots()
  for group, (name, (colour, marker)) in enumerate(GROUPS.items()):
    labels = [label for label, its in METHODS.items() if its == group]
    points = np.array([means[label] for label in labels])
    axes.scatter(*points.T, c=colour, marker=marker, s=42, label=name)
    for label, point in zip(labels, points, strict=True):
      axes.annotate(
        label,
        point,
        PLACES.get(label, (8, -3)),
        textcoords='offset points',
        color=colour,
      )
  axes.set_xlabel('accuracy on clean images, %')
  axes.set_ylabel('under PGD-20 and CW-20, worst case, %')
  axes.set(xlim=(15, 51), ylim=(-1, 24))
  axes.grid(alpha=0.25)
  axes.legend(loc='upper left', frameon=False)
  figure.savefig(out, metadata={'Date': None})


if __name__ == '__main__':
  draw(read())
