"""What a comparison leaves: tables for people and programs, and a picture."""

from pathlib import Path
import statistics

from jax_robust_kd import config as config_lib
from jax_robust_kd.compare import children, scatter, tables
from jax_robust_kd.compare.configs import Run
from jax_robust_kd.compare.tables import Row
from jax_robust_kd.core import RunError
from jax_robust_kd.evaluation import results
from jax_robust_kd.runtime import console
from jax_robust_kd.runtime.files import read_json, read_lines, write_json
from jax_robust_kd.training import build


def read_row(folder: Path, failures: children.Failures, **fields) -> Row:
  """Reads what a run has left.

  Args:
    folder: workdir of the run.
    failures: of the comparison.
    **fields: the fields of the row that the run does not know.
  """
  card = read_json(folder / 'results.json') if children.is_done(folder) else {}
  card.pop('images', None)
  accuracy = {}
  if card:
    # An attack's parts have a dot in their names.
    attacks = {k: v for k, v in card['accuracy'].items() if '.' not in k}
    accuracy = {'clean': card['clean_acc'], **attacks}
    accuracy['worst case'] = card['robust_accuracy']
  # The first line of the log has the compiling in it.
  speeds = [
    line['images_per_second'] for line in read_lines(folder / 'speed.jsonl')
  ][1:]
  status = 'done' if card else 'waiting'
  return Row(
    folder=str(folder),
    status='failed' if folder in failures else status,
    error=failures.get(folder, ''),
    accuracy=accuracy,
    images_per_second=statistics.median(speeds) if speeds else None,
    seconds=children.wall_clock(folder),
    card=card,
    **fields,
  )


def read_rows(runs: list[Run], failures: children.Failures) -> list[Row]:
  """Reads what all runs have left, and teachers that were trained before."""
  rows = [
    read_row(
      run.folder,
      failures,
      label=run.label,
      seed=run.seed,
      config=run.source,
      epochs=run.config.optimizer.epochs,
      passes_per_step=run.cost.passes,
    )
    for run in runs
  ]
  cards = [row.card for row in rows if row.status == 'done']
  unknown = dict(seed=None, config='', epochs=0, passes_per_step=0.0)
  before = [
    read_row(folder, {}, label=f'teacher ({folder.name})', **unknown)
    for folder in dict.fromkeys(f for run in runs for f in teachers_before(run))
  ]
  # It counts only where it was attacked in the same way.
  keys = ('dataset', 'norm', 'eps', 'num_examples', 'split')
  return [
    row
    for row in before
    if cards and row.card and all(row.card[k] == cards[-1][k] for k in keys)
  ] + rows


def teachers_before(run: Run) -> list[Path]:
  """Returns the workdirs of a run's teachers that were trained before."""
  folders = [
    Path(config_lib.teacher_group(run.config, name)[1].checkpoint)
    for name in build.make_method(run.config).teachers
  ]
  return [f for f in folders if f not in run.teachers and f.is_dir()]


def write(
  workdir: Path,
  runs: list[Run],
  failures: children.Failures,
  notes: list[str],
) -> list[Row]:
  """Writes all files of a comparison, as far as it has come.

  Raises:
    RunError: one cannot be written.
  """
  rows = read_rows(runs, failures)
  title = make_title(rows)
  notes = [*notes, *failed_lines(rows)]
  summary = tables.summarize(rows)
  results.write_csv(workdir / 'comparison.csv', tables.as_columns(rows))
  content = {
    'title': title,
    'notes': notes,
    'labels': summary,
    'runs': [row._asdict() for row in rows],
    'configs': {str(run.folder): run.config.to_dict() for run in runs},
  }
  write_json(workdir / 'comparison.json', content)
  try:
    markdown = tables.markdown(title, rows, notes)
    (workdir / 'comparison.md').write_text(markdown)
    done = [s for s in summary if 'clean' in s['mean']]
    if done and scatter.can_draw():
      scatter.draw(workdir / 'comparison.png', done, title)
  except OSError as error:
    raise RunError(
      f'{workdir}/comparison.* cannot be written: {error.strerror}'
    ) from error
  return rows


def failed_lines(rows: list[Row]) -> list[str]:
  """Returns a line for each run that failed."""
  return [
    f'failed: {r.label}{"" if r.seed is None else f", seed {r.seed}"}: '
    f'{r.error}'
    for r in rows
    if r.status == 'failed'
  ]


def make_title(rows: list[Row]) -> str:
  """Returns what was attacked, and how."""
  cards = [row.card for row in rows if row.status == 'done']
  if not cards:
    return 'no run is finished'
  counts = ' or '.join(map(str, sorted({c['num_examples'] for c in cards})))
  several = len({row.seed for row in rows if row.seed is not None}) > 1
  deviation = ', mean ± standard deviation over seeds' if several else ''
  return (
    f'{cards[0]["dataset"]}, {counts} test images, {cards[0]["norm"]} '
    f'{cards[0]["eps"]}, accuracy in %{deviation}'
  )


def show(workdir: Path, rows: list[Row]) -> None:
  """Prints the table, what failed, and where the files are."""
  columns, cells = tables.as_table(rows)
  for line in (columns, *cells):
    del line[-4:-2]  # known before the start, and a terminal is narrow
  console.table(make_title(rows), columns, cells)
  for line in failed_lines(rows):
    console.say(line)
  kinds = ('md', 'csv', 'json', *(['png'] if scatter.can_draw() else []))
  console.say(f'files: {workdir}/comparison.{{{",".join(kinds)}}}')
