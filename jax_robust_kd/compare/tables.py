"""The tables of a comparison, of what its runs have left. All pure."""

import statistics
from typing import NamedTuple

from jax_robust_kd.runtime.console import duration

PLANNED = ('epochs', 'passes per step')  # columns known before the start
# What of a run's card is a column of the CSV file.
CARD = (
  'name', 'dataset', 'norm', 'eps', 'num_examples', 'split', 'architecture',
  'parameters', 'checkpoint', 'checkpoint_step', 'sha256', 'commit', 'version',
  'jax',
)  # fmt: skip


class Row(NamedTuple):
  """One run of a comparison, finished or not.

  Attributes:
    label: its name.
    seed: seed of the run, None for a teacher.
    status: 'done', 'failed' or 'waiting'.
    error: the sentence of a failed run.
    config: its file and argument.
    folder: its workdir.
    accuracy: in %, of 'clean', each attack and 'worst case'.
    epochs: of its training.
    passes_per_step: in forward passes of the student.
    images_per_second: in training, None where not measured.
    seconds: wall-clock time, None where a kill cut the measuring short.
    card: its results.json but for the images, {} before it is finished.
  """

  label: str
  seed: int | None
  status: str
  error: str
  config: str
  folder: str
  accuracy: dict[str, float]
  epochs: int
  passes_per_step: float
  images_per_second: float | None
  seconds: float | None
  card: dict


def accuracy_names(rows: list[Row]) -> list[str]:
  """Returns the columns of accuracy: clean, the attacks, the worst case."""
  names = dict.fromkeys(name for row in rows for name in row.accuracy)
  attacks = [n for n in names if n not in ('clean', 'worst case')]
  return ['clean', *attacks, 'worst case']


def spread(values: list[float]) -> str:
  """Formats mean ± sample standard deviation; one value has none."""
  if not values:
    return '–'
  mean = f'{statistics.mean(values):.1f}'
  return f'{mean} ± {statistics.stdev(values):.1f}' if values[1:] else mean


def summarize(rows: list[Row]) -> list[dict]:
  """Returns a dict for each label: mean, standard deviation, seeds, cost."""
  groups: dict[tuple[str, bool], list[Row]] = {}
  for row in rows:
    groups.setdefault(_key(row), []).append(row)
  names = accuracy_names(rows)
  return [_summary(*key, group, names) for key, group in groups.items()]


def _key(row: Row) -> tuple[str, bool]:
  """A student may be called like a teacher."""
  return row.label, row.seed is None


def _summary(
  label: str, is_teacher: bool, rows: list[Row], names: list[str]
) -> dict:
  done = [row for row in rows if row.status == 'done']
  values = {n: [r.accuracy[n] for r in done if n in r.accuracy] for n in names}
  return {
    'label': label,
    'teacher': is_teacher,
    'seeds': [r.seed for r in done if r.seed is not None],
    'failed': [r.seed for r in rows if r.status == 'failed'],
    'mean': {n: statistics.mean(v) for n, v in values.items() if v},
    'sd': {n: statistics.stdev(v) for n, v in values.items() if v[1:]},
    'text': {n: spread(v) for n, v in values.items()},
    'epochs': rows[0].epochs,
    'passes_per_step': rows[0].passes_per_step,
    'images_per_second': _mean([r.images_per_second for r in done]),
    'seconds': _mean([r.seconds for r in done]),
  }


def _mean(values: list[float | None]) -> float | None:
  known = [v for v in values if v is not None]
  return statistics.mean(known) if known else None


def as_table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
  """Returns the columns and cells of the table of a comparison."""
  names = accuracy_names(rows)
  columns = ['', 'seeds', *names, *PLANNED, 'images/s', 'wall-clock']
  cells = []
  for s in summarize(rows):
    speed, seconds = s['images_per_second'], s['seconds']
    count = '' if s['teacher'] else str(len(s['seeds']))
    if s['failed']:
      count += f' ({len(s["failed"])} failed)'
    cells.append([
        s['label'],
        count,
        *s['text'].values(),
        str(s['epochs'] or '–'),
        f'{s["passes_per_step"]:.1f}' if s['passes_per_step'] else '–',
        '–' if speed is None else f'{speed:.0f}',
        '–' if seconds is None else duration(seconds),
    ])  # fmt: skip
  return columns, cells


def markdown(title: str, rows: list[Row], notes: list[str]) -> str:
  """Returns the table in Markdown, its title above and notes below it."""
  columns, cells = as_table(rows)
  lines = [' | '.join(line) for line in (columns, *cells)]
  lines = [f'| {line} |' for line in lines]
  lines.insert(1, '|' + '---|' * len(columns))
  lines += ['', *(f'- {note}' for note in notes)] if notes else []
  return '\n'.join([title, '', *lines]) + '\n'


def as_columns(rows: list[Row]) -> dict[str, list]:
  """Returns the runs as columns of a CSV file, one row for each run.

  Mean and standard deviation are those of the label, in each of its rows.
  """
  names = accuracy_names(rows)
  labels = {(s['label'], s['teacher']): s for s in summarize(rows)}
  fields = [f for f in Row._fields if f not in ('accuracy', 'card')]
  columns: dict[str, list] = {f: [getattr(r, f) for r in rows] for f in fields}
  columns |= {n: [r.accuracy.get(n) for r in rows] for n in names}
  columns |= {
    f'{n} {kind}': [labels[_key(r)][kind].get(n) for r in rows]
    for n in names
    for kind in ('mean', 'sd')
  }
  return columns | {key: [r.card.get(key) for r in rows] for key in CARD}
