"""What a person sees while it runs: a bar in a terminal, lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import sys
import time

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from jax_robust_kd.core import RunError, UserError

LINE_SECONDS = 10.0  # between lines when the output is not a terminal
_muted = []  # holds something in processes that say nothing


def mute() -> None:
  """Says nothing from here on: another process of the run speaks."""
  _muted.append(True)


def printable(text: str, but: str = '') -> str:
  """Returns text in which control characters are visible, as '\\x1b'.

  Names of files and classes come from others: one that holds a newline or an
  escape of the terminal must not pass for output of this program.

  Args:
    text: from anybody.
    but: characters that stay as they are.
  """
  return ''.join(
    c if c.isprintable() or c in but else repr(c)[1:-1] for c in text
  )


def say(text: str) -> None:
  """Prints one line, at once."""
  if _muted:
    return
  out = Console(highlight=False, soft_wrap=True, emoji=False)
  out.print(printable(text, '\n'), markup=False)
  sys.stdout.flush()


def duration(seconds: float) -> str:
  """Formats seconds the way people say them: '45 s', '3 min', '2.5 h'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  if seconds < 5400:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'


@contextmanager
def progress(label: str, start: int, total: int) -> Iterator[Callable]:
  """Shows progress in steps.

  Args:
    label: what runs.
    start: steps already done.
    total: steps of the whole run.

  Yields:
    update(done, text): reports steps done and what to print beside them.
  """
  if _muted:
    yield lambda done, text: None
  elif Console().is_terminal:
    with _bar(label, start, total) as update:
      yield update
  else:
    yield _lines(label, total)


@contextmanager
def _bar(label: str, start: int, total: int) -> Iterator[Callable]:
  bar = Progress(
    TextColumn('{task.description}'),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TextColumn('{task.fields[text]}'),
    TimeRemainingColumn(),
  )
  task = bar.add_task(label, total=total, completed=start, text='')
  with bar:
    yield lambda done, text: bar.update(task, completed=done, text=text)


def _lines(label: str, total: int) -> Callable:
  last = time.monotonic()
  first = None  # the first report comes after compiling: count from there

  def update(done: int, text: str) -> None:
    nonlocal first, last
    now = time.monotonic()
    first = first or (done, now)
    if now - last < LINE_SECONDS and done < total:
      return
    last = now
    left = ''
    if done > first[0]:
      rate = (done - first[0]) / (now - first[1])
      left = f'  {duration((total - done) / rate)} left'
    say(f'{label}  {done}/{total}  {text}{left}')

  return update


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
  """Prints a table; all columns but the first are right-aligned."""
  if _muted:
    return
  shown = Table(title=Text(printable(title)), title_justify='left')
  for i, column in enumerate(columns):
    shown.add_column(column, justify='right' if i else 'left', no_wrap=True)
  for row in rows:
    shown.add_row(*(Text(printable(cell)) for cell in row))
  # A file has no width: rich would assume 80 columns and cut words.
  width = None if sys.stdout.isatty() else 120
  Console(width=width, highlight=False).print(shown)


def guard(body: Callable[[], int]) -> int:
  """Turns what a command raises into a sentence and an exit code."""
  try:
    return body()
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except RunError as error:
    print(f'stopped: {error}', file=sys.stderr)
    return error.exit_code
  except KeyboardInterrupt:
    print('stopped: interrupted; the same command goes on', file=sys.stderr)
    return 130
