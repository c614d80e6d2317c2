"""Runs as processes of their own, some at once, and what is left to do."""

from collections.abc import Callable, Mapping
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from jax_robust_kd.core import RunError
from jax_robust_kd.runtime import console, cores
from jax_robust_kd.runtime.files import append, read_lines

LINE_SECONDS = 30.0  # between lines about what runs
_CHILD = 'from jax_robust_kd.compare.runner import child; child()'


class Task(NamedTuple):
  """One run.

  Attributes:
    label: what to call it on the screen.
    folder: its workdir; it is finished once results.json is there.
    command: a whole command line.
    work: of the whole run, in operations.
    needs: folders of the runs that must be finished before.
  """

  label: str
  folder: Path
  command: list[str]
  work: float = 1.0
  needs: tuple[Path, ...] = ()


class Running(NamedTuple):
  """A task whose process is alive."""

  task: Task
  process: subprocess.Popen
  started: float  # of the monotonic clock
  log_start: int  # bytes of the log that are older
  share: int  # of the processor's cores


def main_command(flags: list[str]) -> list[str]:
  """Returns the command line of `python -m jax_robust_kd.main`.

  The process ends with this one, even where this one is killed, so that the
  same folder is never written by two.
  """
  return [sys.executable, '-c', _CHILD, *flags]


def child() -> None:
  """Is the main program, until the process that started it is gone."""

  def wait() -> None:
    # The other end is open as long as that one lives. (Not `sys.stdin`, whose
    # lock Python wants when it ends.)
    os.read(0, 1)
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
  from jax_robust_kd import main

  sys.exit(main.main(['main', *sys.argv[1:]]))


def is_done(folder: Path) -> bool:
  """Returns whether a run is finished and evaluated."""
  return (folder / 'results.json').exists()


def run_all(
  tasks: list[Task],
  *,
  at_once: int,
  environment: Mapping[str, str],
  after: Callable[[dict[Path, str]], object],
) -> dict[Path, str]:
  """Runs what is not finished, as many at once as allowed.

  A run that fails does not stop the others, but those that need it.

  Args:
    tasks: in order; those that others need come before them.
    at_once: processes.
    environment: of the processes.
    after: called with the failures so far whenever a run has ended.

  Returns:
    Folder -> sentence of each run that failed.

  Raises:
    RunError: a log cannot be written.
  """
  waiting = [task for task in tasks if not is_done(task.folder)]
  failed: dict[Path, str] = {}
  running: list[Running] = []
  said = time.monotonic()
  try:
    while waiting or running:
      for one in [r for r in running if r.process.poll() is not None]:
        running.remove(one)
        _end(one, failed)
        after(failed)
      for task in [t for t in waiting if any(n in failed for n in t.needs)]:
        waiting.remove(task)
        failed[task.folder] = 'not run, as its teacher failed'
        after(failed)
      ready = [t for t in waiting if all(map(is_done, t.needs))]
      for task in ready[: at_once - len(running)]:
        waiting.remove(task)
        share = min(set(range(at_once)) - {one.share for one in running})
        running.append(_start(task, environment, share, at_once))
        console.say(_headline(tasks, task, failed, at_once))
      if time.monotonic() - said > LINE_SECONDS:
        said = time.monotonic()
        for one in running:
          console.say(f'  {one.task.label}: {_last_line(one.task.folder)}')
      time.sleep(0.1)
  finally:
    for one in running:
      one.process.kill()
      one.process.wait()
  return failed


def _start(
  task: Task, environment: Mapping[str, str], share: int, at_once: int
) -> Running:
  log = task.folder / 'log.txt'
  try:
    task.folder.mkdir(parents=True, exist_ok=True)
    with log.open('ab') as output:
      start = output.tell()
      process = subprocess.Popen(
        task.command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,  # Ctrl-C is for this process
      )
  except OSError as error:
    raise RunError(f'{log} cannot be written: {error.strerror}') from error
  if at_once > 1:
    cores.restrict(process.pid, share, at_once)
  append(
    task.folder / 'attempts.jsonl', {'event': 'start', 'time': time.time()}
  )
  return Running(task, process, time.monotonic(), start, share)


def _end(one: Running, failed: dict[Path, str]) -> None:
  """Notes the time of a process that has ended, and its failure."""
  task, code = one.task, one.process.returncode
  assert one.process.stdin is not None
  one.process.stdin.close()
  seconds = time.monotonic() - one.started
  append(
    task.folder / 'attempts.jsonl',
    {'event': 'end', 'seconds': seconds, 'code': code},
  )
  if code == 0 and is_done(task.folder):
    console.say(f'{task.label}: done in {console.duration(seconds)}')
    return
  reason = _reason(task.folder / 'log.txt', one.log_start, code)
  failed[task.folder] = reason
  console.say(f'{task.label}: FAILED: {reason}')


def _reason(log: Path, start: int, code: int) -> str:
  """Returns the sentence with which a process ended."""
  if code < 0:
    name = signal.Signals(-code).name
    hint = '; is there enough memory?' if name == 'SIGKILL' else ''
    return f'killed by {name}{hint}'
  text = log.read_bytes()[start:].decode(errors='replace')
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  for line in reversed(lines):
    if line.startswith(('error: ', 'stopped: ')):
      return line.partition(': ')[2]
  last = lines[-1] if lines else 'it said nothing'
  return f'exit code {code}: {last}'


def _last_line(folder: Path) -> str:
  with (folder / 'log.txt').open('rb') as file:
    file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
    lines = file.read().decode(errors='replace').split('\n')
  return next((x.strip() for x in reversed(lines) if x.strip()), 'starting')


def wall_clock(folder: Path) -> float | None:
  """Returns the seconds that a run took over all attempts.

  None where they are not known: an attempt was cut by a kill of this program,
  or the run was made by another.
  """
  events = read_lines(folder / 'attempts.jsonl')
  seconds = [e['seconds'] for e in events if e['event'] == 'end']
  return sum(seconds) if seconds and 2 * len(seconds) == len(events) else None


def time_left(
  tasks: list[Task], failed: Mapping[Path, str], at_once: int
) -> float | None:
  """Returns the seconds still to go, at the speed of the finished runs.

  None before the first has finished.
  """
  done = [t for t in tasks if is_done(t.folder)]
  timed = [(wall_clock(t.folder), t.work) for t in done]
  known = [(s, w) for s, w in timed if s is not None]
  if not known:
    return None
  rate = sum(s for s, _ in known) / sum(w for _, w in known)
  left = [t for t in tasks if t not in done and t.folder not in failed]
  return rate * sum(t.work for t in left) / min(at_once, max(len(left), 1))


def _headline(
  tasks: list[Task], task: Task, failed: Mapping[Path, str], at_once: int
) -> str:
  left = time_left(tasks, failed, at_once)
  about = '' if left is None else f', about {console.duration(left)} to go'
  number = tasks.index(task) + 1
  return f'run {number} of {len(tasks)}{about}: {task.label}'
