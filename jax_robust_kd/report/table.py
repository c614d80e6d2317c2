"""results.csv: one row for each run below a folder, nothing rounded."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.report.numbers import by_class
from jax_robust_kd.report.reading import RunFiles, read_run
from jax_robust_kd.runtime.console import printable

_FIRST = (
  'workdir', 'name', 'dataset', 'architecture', 'parameters', 'norm', 'eps',
  'num_examples', 'seed', 'clean_acc', 'robust_accuracy', 'robust_low',
  'robust_high', 'worst_class', 'worst_three',
)  # fmt: skip


def find_runs(folder: Path) -> list[Path]:
  """Returns the evaluated runs below a folder, sorted.

  Raises:
    UserError: there is none.
  """
  runs = sorted(path.parent for path in folder.rglob('results.json'))
  if not runs:
    raise UserError(
      f'{folder} holds no evaluated run (no results.json below it); give the '
      'folder above your workdirs'
    )
  return runs


def row_of(run: RunFiles) -> dict[str, Any]:
  """Returns all that results.json says of a run, flat, with class accuracy."""
  row = dict(run.results)
  low, high = row.pop('robust_interval_95', (None, None))
  label = np.array(run.images['label'], int)
  classes = by_class(
    label, run.correct('clean'), run.correct('robust'), int(label.max()) + 1
  )
  row |= {
    'workdir': str(run.folder),
    'robust_low': low,
    'robust_high': high,
    'worst_class': classes.worst,
    'worst_three': classes.worst_three,
  }
  for group in ('accuracy', 'corruptions'):
    for name, value in (row.pop(group, None) or {}).items():
      row[f'{group}.{name}'] = value
  return row


def as_csv(runs: list[Path]) -> str:
  """Returns the table, in which no cell is a formula."""
  rows = [row_of(read_run(folder)) for folder in runs]
  names = list(
    dict.fromkeys((*_FIRST, *(name for row in rows for name in row)))
  )
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(names)
  writer.writerows([[as_cell(row.get(name)) for name in names] for row in rows])
  return file.getvalue()


def as_cell(value: Any) -> Any:
  """Returns a value as a spreadsheet shows it: never as a formula."""
  if value is None:
    return ''
  if isinstance(value, (int, float)):
    return value
  text = printable(str(value))
  return f"'{text}" if text[:1] in ('=', '+', '-', '@') else text
