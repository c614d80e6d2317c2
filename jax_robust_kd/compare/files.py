"""The files of a comparison: a table for people, for programs, a picture."""

from collections.abc import Mapping
from pathlib import Path
import statistics

from jax_robust_kd.compare import runner, scatter, tables
from jax_robust_kd.compare.plan import Planned
from jax_robust_kd.compare.tables import Row
from jax_robust_kd.compare.workload import operations
from jax_robust_kd.core import RunError
from jax_robust_kd.evaluation import results
from jax_robust_kd.runtime import console
from jax_robust_kd.runtime.files import read_json, read_lines, write_json

can_draw = scatter.can_draw


def show_plan(
  entries: list[Planned], runs: list[Planned], seeds: list[int]
) -> None:
  """Prints what will run and what it costs."""
  students = [e for e in entries if not e.group]
  first = operations(students[0].config, students[0].load)
  cells = []
  for entry in entries:
    own = [r for r in runs if r.label == entry.label and r.group == entry.group]
    done = sum(runner.is_done(r.folder) for r in own)
    cost = operations(entry.config, entry.load)
    cells.append([
        entry.label,
        entry.spec,
        str(entry.config.optimizer.epochs),
        f'{entry.load.passes:.1f}',
        f'{cost / first:.2f}',
        f'{done} of {len(own)}',
    ])  # fmt: skip
  console.table(
    f'{len(runs)} runs, seeds {", ".join(map(str, seeds))}; the cost of a run '
    f'is relative to {students[0].label}',
    ['', 'config', 'epochs', 'passes per step', 'cost', 'finished'],
    cells,
  )


def speed(folder: Path) -> float | None:
  """Returns the median images/s of the lines that a training left.

  The first line is left out: it has the compiling in it.
  """
  lines = [r['images_per_second'] for r in read_lines(folder / 'speed.jsonl')]
  return statistics.median(lines[1:]) if len(lines) > 1 else None


def _accuracy(card: dict) -> dict[str, float]:
  """Returns clean, each attack and the worst case; parts of attacks are not."""
  attacks = {k: v for k, v in card['accuracy'].items() if '.' not in k}
  return {
    'clean': card['clean_acc'],
    **attacks,
    'worst case': card['robust_accuracy'],
  }


def _card(folder: Path) -> dict:
  """Returns the results of a run without its images; {} if not finished."""
  if not runner.is_done(folder):
    return {}
  card = read_json(folder / 'results.json')
  return {k: v for k, v in card.items() if k != 'images'}


def make_row(run: Planned, failed: Mapping[Path, str]) -> Row:
  """Reads what a run has left."""
  card = _card(run.folder)
  status = 'failed' if run.folder in failed else 'done' if card else 'waiting'
  return Row(
    label=run.label,
    seed=run.seed,
    status=status,
    error=failed.get(run.folder, ''),
    config=run.spec,
    folder=str(run.folder),
    accuracy=_accuracy(card) if card else {},
    epochs=run.config.optimizer.epochs,
    passes_per_step=run.load.passes,
    images_per_second=speed(run.folder),
    seconds=runner.wall_clock(run.folder),
    card=card,
  )


def given_row(folder: Path, like: dict) -> Row | None:
  """Reads the results of a teacher that was trained before.

  Args:
    folder: its workdir.
    like: a card of the comparison.

  Returns:
    None where it has none, or was attacked in another way.
  """
  card = _card(folder)
  keys = ('dataset', 'norm', 'eps', 'num_examples', 'split')
  if not card or any(card[k] != like[k] for k in keys):
    return None
  return Row(
    label=f'teacher ({folder.name})',
    seed=None,
    status='done',
    error='',
    config='',
    folder=str(folder),
    accuracy=_accuracy(card),
    epochs=0,
    passes_per_step=0.0,
    images_per_second=speed(folder),
    seconds=None,
    card=card,
  )


def write(
  workdir: Path,
  given: list[Path],
  runs: list[Planned],
  failed: Mapping[Path, str],
  notes: list[str],
) -> list[Row]:
  """Writes all files of a comparison, as far as it has come.

  Raises:
    RunError: one cannot be written.
  """
  rows = [make_row(run, failed) for run in runs]
  done = [row for row in rows if row.status == 'done']
  if done:
    found = [given_row(folder, done[-1].card) for folder in given]
    rows = [row for row in found if row] + rows
  notes = [*notes, *_failures(rows)]
  columns, cells = tables.as_table(rows, console.duration)
  text = tables.markdown(title(rows), columns, cells, notes)
  results.write_csv(workdir / 'comparison.csv', tables.as_columns(rows))
  write_json(
    workdir / 'comparison.json',
    {
      'title': title(rows),
      'notes': notes,
      'labels': tables.summarize(rows),
      'runs': [row._asdict() for row in rows],
      'configs': {str(r.folder): r.config.to_dict() for r in runs},
    },
  )
  try:
    (workdir / 'comparison.md').write_text(text)
    if done and can_draw():
      scatter.draw(workdir / 'comparison.png', points(rows), title(rows))
  except OSError as error:
    raise RunError(
      f'{workdir}/comparison.* cannot be written: {error.strerror}'
    ) from error
  return rows


def _failures(rows: list[Row]) -> list[str]:
  failed = [row for row in rows if row.status == 'failed']
  return [
    f'failed: {r.label}{"" if r.seed is None else f", seed {r.seed}"}: '
    f'{r.error}'
    for r in failed
  ]


def title(rows: list[Row]) -> str:
  """Returns what was attacked, and how."""
  found = [row.card for row in rows if row.status == 'done']
  if not found:
    return 'no run is finished'
  counts = ' or '.join(
    str(n) for n in sorted({i['num_examples'] for i in found})
  )
  several = len({row.seed for row in rows if row.seed is not None}) > 1
  spread = ', mean ± standard deviation over seeds' if several else ''
  return (
    f'{found[0]["dataset"]}, {counts} test images, {found[0]["norm"]} '
    f'{found[0]["eps"]}, accuracy in %{spread}'
  )


def points(rows: list[Row]) -> list[scatter.Point]:
  """Returns what is drawn: the labels with a finished run."""
  names = ('clean', 'worst case')
  return [
    scatter.Point(
      s['label'],
      *(s['mean'][n] for n in names),
      *(s['sd'].get(n, 0.0) for n in names),
      teacher=s['teacher'],
    )
    for s in tables.summarize(rows)
    if 'clean' in s['mean']
  ]


def show(workdir: Path, rows: list[Row]) -> None:
  """Prints the table, what failed, and where the files are."""
  columns, cells = tables.as_table(rows, console.duration)
  # Known before the start, and a terminal is narrow.
  kept = [i for i, c in enumerate(columns) if c not in tables.PLANNED]
  console.table(
    title(rows),
    [columns[i] for i in kept],
    [[row[i] for i in kept] for row in cells],
  )
  for line in _failures(rows):
    console.say(line)
  kinds = ('md', 'csv', 'json', *(['png'] if can_draw() else []))
  console.say(f'files: {workdir}/comparison.{{{",".join(kinds)}}}')
