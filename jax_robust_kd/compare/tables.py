"""What a comparison says: its entries, its budget and its tables. All pure."""

import statistics
from typing import NamedTuple

from jax_robust_kd.config import differing_keys

BUDGETS = ('epochs', 'passes', 'own')
PLANNED = ('epochs', 'passes per step')  # columns known before the start
# What of a run's card is a column of the CSV file.
CARD = (
  'name', 'dataset', 'norm', 'eps', 'num_examples', 'split', 'architecture',
  'parameters', 'checkpoint', 'checkpoint_step', 'sha256', 'commit', 'version',
  'jax',
)  # fmt: skip
# What makes one method another, besides its teachers.
MAY_DIFFER = ('method', 'data.augment', 'attack', 'optimizer', 'seed')


def match_budget(
  budget: str, epochs: list[int], passes: list[float]
) -> list[int]:
  """Returns the epochs of each entry; the first one's budget is everyone's.

  Args:
    budget: 'epochs', 'passes' (epochs x passes per step is the same, as near
      as whole epochs come) or 'own', to leave each as its config says.
    epochs: of each config.
    passes: forward passes of the student that a training step costs.
  """
  if budget == 'own':
    return epochs
  if budget == 'epochs':
    return [epochs[0]] * len(epochs)
  whole = epochs[0] * passes[0]
  return [max(1, round(whole / p)) for p in passes]


def differences(
  configs: dict[str, dict], asked: dict[str, set[str]], budget: str
) -> list[str]:
  """Returns a line for each entry that differs in more than its method.

  Args:
    configs: label -> config as a dict, each with `budget` as it will run.
    asked: label -> groups of the teachers that the method asks.
    budget: epochs may differ where passes are matched.
  """
  (first, base), *others = configs.items()
  lines = []
  for label, config in others:
    both = asked[first] & asked[label]
    names = [
      name
      for name in differing_keys(base, config)
      if _counts(name, both, budget)
    ]
    if names:
      told = ', '.join(
        f'{n} is {_value(config, n)!r}, not {_value(base, n)!r}' for n in names
      )
      lines.append(f'{label} differs from {first} not only as a method: {told}')
  return lines


def _counts(name: str, teachers: set[str], budget: str) -> bool:
  group = name.partition('.')[0]
  if name == 'optimizer.epochs':
    return budget != 'passes'
  if group in ('teacher', 'clean_teacher'):
    return group in teachers
  return not any(name == m or name.startswith(m + '.') for m in MAY_DIFFER)


def _value(config: dict, name: str):
  for key in name.split('.'):
    if key not in config:
      return None
    config = config[key]
  return config


class Row(NamedTuple):
  """One run of a comparison, finished or not.

  Attributes:
    label: of its entry.
    seed: of the run, None for a teacher.
    status: 'done', 'failed' or 'waiting'.
    error: the sentence of a failed run.
    config: its file and argument.
    folder: its workdir.
    accuracy: in %, of 'clean', each attack and 'worst case'.
    epochs: of its training.
    passes_per_step: in forward passes of the student.
    images_per_second: in training, None where not measured.
    seconds: of wall-clock, None where a kill cut the measuring short.
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


def attacks_of(rows: list[Row]) -> list[str]:
  """Returns the columns of accuracy: clean, the attacks, the worst case."""
  names = dict.fromkeys(name for row in rows for name in row.accuracy)
  middle = [n for n in names if n not in ('clean', 'worst case')]
  return ['clean', *middle, 'worst case']


def spread(values: list[float], digits: int = 1) -> str:
  """Formats mean ± sample standard deviation; one value has none."""
  if not values:
    return '–'
  mean = f'{statistics.mean(values):.{digits}f}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(values):.{digits}f}'


def summarize(rows: list[Row]) -> list[dict]:
  """Returns a dict for each label: mean, standard deviation, seeds, cost."""
  summary = []
  for key in dict.fromkeys(map(_key, rows)):
    own = [row for row in rows if _key(row) == key]
    done = [row for row in own if row.status == 'done']
    columns = {
      name: [r.accuracy[name] for r in done if name in r.accuracy]
      for name in attacks_of(rows)
    }
    summary.append({
        'label': key[0],
        'teacher': key[1],
        'seeds': [r.seed for r in done if r.seed is not None],
        'failed': [r.seed for r in own if r.status == 'failed'],
        'mean': {k: statistics.mean(v) for k, v in columns.items() if v},
        'sd': {
            k: statistics.stdev(v) for k, v in columns.items() if len(v) > 1
        },
        'text': {k: spread(v) for k, v in columns.items()},
        'epochs': own[0].epochs,
        'passes_per_step': own[0].passes_per_step,
        'images_per_second': _mean([r.images_per_second for r in done]),
        'seconds': _mean([r.seconds for r in done]),
    })  # fmt: skip
  return summary


def _key(row: Row) -> tuple[str, bool]:
  """An entry may be called like a teacher."""
  return row.label, row.seed is None


def _mean(values: list[float | None]) -> float | None:
  known = [v for v in values if v is not None]
  return statistics.mean(known) if known else None


def as_table(rows: list[Row], duration) -> tuple[list[str], list[list[str]]]:
  """Returns the columns and cells of the table of a comparison.

  Args:
    rows: of all runs.
    duration: seconds -> text.
  """
  names = attacks_of(rows)
  columns = [
    '', 'seeds', *names, *PLANNED, 'images/s', 'wall-clock',
  ]  # fmt: skip
  cells = []
  for s in summarize(rows):
    speed, seconds = s['images_per_second'], s['seconds']
    count = '' if s['teacher'] else str(len(s['seeds']))
    if s['failed']:
      count += f' ({len(s["failed"])} failed)'
    cells.append([
        s['label'],
        count,
        *(s['text'][name] for name in names),
        str(s['epochs'] or '–'),
        f'{s["passes_per_step"]:.1f}' if s['passes_per_step'] else '–',
        '–' if speed is None else f'{speed:.0f}',
        '–' if seconds is None else duration(seconds),
    ])  # fmt: skip
  return columns, cells


def markdown(
  title: str, columns: list[str], cells: list[list[str]], notes: list[str]
) -> str:
  """Returns the table in Markdown, its title above and notes below it."""
  lines = [title, '']
  lines += [f'| {" | ".join(columns)} |']
  lines += ['|' + '---|' * len(columns)]
  lines += [f'| {" | ".join(row)} |' for row in cells]
  if notes:
    lines += ['', *(f'- {note}' for note in notes)]
  return '\n'.join(lines) + '\n'


def as_columns(rows: list[Row]) -> dict[str, list]:
  """Returns the runs as columns of a CSV file, one row for each run.

  Mean and standard deviation are those of the label, in each of its rows.
  """
  names = attacks_of(rows)
  labels = {(s['label'], s['teacher']): s for s in summarize(rows)}
  fields = [f for f in Row._fields if f not in ('accuracy', 'card')]
  columns: dict[str, list] = {f: [getattr(r, f) for r in rows] for f in fields}
  columns |= {n: [r.accuracy.get(n) for r in rows] for n in names}
  for name in names:
    for kind in ('mean', 'sd'):
      found = [labels[_key(r)][kind].get(name) for r in rows]
      columns[f'{name} {kind}'] = found
  columns |= {k: [r.card.get(k) for r in rows] for k in CARD}
  return columns
