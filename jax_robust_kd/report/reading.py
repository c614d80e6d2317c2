"""What a run left in its workdir, read for a report."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.runtime.files import read_json, read_lines


class RunFiles(NamedTuple):
  """The text files of an evaluated run.

  Attributes:
    folder: its workdir.
    config: config.json.
    results: results.json, the summary.
    images: columns of images.csv, by name; '' where an image was not attacked.
    metrics: lines of metrics.jsonl.
    speed: lines of speed.jsonl.
    checks: of checks.json, [] where nobody checked.
  """

  folder: Path
  config: dict[str, Any]
  results: dict[str, Any]
  images: dict[str, list[str]]
  metrics: list[dict[str, float]]
  speed: list[dict[str, float]]
  checks: list[dict[str, Any]]

  @property
  def label(self) -> str:
    """The method, or the folder of a run that has none."""
    return self.results.get('name') or self.folder.name

  @property
  def attacks(self) -> list[str]:
    """The attacks that were run, and named suites, in order."""
    return list(self.results['accuracy'])

  def correct(self, name: str) -> np.ndarray:
    """Returns [N] bool: correct without ('clean') or under an attack."""
    return np.array([flag == '1' for flag in self.images[name]])


def read_run(folder: Path) -> RunFiles:
  """Reads an evaluated run.

  Raises:
    UserError: it was not evaluated, or a file is damaged.
  """
  if not (folder / 'results.json').exists():
    raise UserError(
      f'{folder} has no results.json; evaluate the run first (jax-robust-kd '
      f'eval --workdir {folder})'
    )
  results = read_json(folder / 'results.json')
  for key in ('accuracy', 'clean_acc', 'robust_accuracy', 'num_examples'):
    if key not in results:
      raise UserError(
        f'{folder}/results.json has no {key!r}; evaluate the run again'
      )
  results.pop('images', None)  # of older versions; images.csv has them
  checks = folder / 'checks.json'
  return RunFiles(
    folder,
    read_json(folder / 'config.json'),
    results,
    read_columns(folder / 'images.csv'),
    read_lines(folder / 'metrics.jsonl'),
    read_lines(folder / 'speed.jsonl'),
    as_checks(read_json(checks)) if checks.exists() else [],
  )


def as_checks(content: Any) -> list[dict[str, Any]]:
  """Returns the checks of checks.json, whichever version wrote it."""
  if isinstance(content, dict):
    content = content.get('checks', [])
  wanted = ('name', 'level', 'meaning')
  return [c for c in content if isinstance(c, dict) and all(map(c.get, wanted))]


def read_columns(path: Path) -> dict[str, list[str]]:
  """Reads a CSV file as columns.

  Raises:
    UserError: it is missing or its rows have different lengths.
  """
  try:
    with path.open(newline='') as file:
      head, *rows = csv.reader(file)
    columns = zip(*rows, strict=True) if rows else [()] * len(head)
    return {name: list(c) for name, c in zip(head, columns, strict=True)}
  except (OSError, ValueError) as error:
    raise UserError(
      f'{path} cannot be read ({error}); evaluate the run again'
    ) from None
