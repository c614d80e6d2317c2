"""Runs as processes of their own, some at once, and the time that is left."""

from collections.abc import Callable, Mapping
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from jax_robust_kd.core import Preempted, RunError
from jax_robust_kd.runtime import console, cores, processes
from jax_robust_kd.runtime.files import append, read_lines, write_json

LINE_SECONDS = 30.0  # between lines about what runs
_CHILD = 'from jax_robust_kd.compare.children import child; child()'

Failures = dict[Path, str]  # workdir -> sentence of each run that failed


class Task(NamedTuple):
  """One run.

  Attributes:
    label: its name on the screen.
    folder: its workdir; it is finished once results.json is there.
    command: the whole command line.
    config: written to config.json first, {} for none.
    cost: of the whole run, in operations.
    needs: workdirs of the runs that must be finished before.
  """

  label: str
  folder: Path
  command: list[str]
  config: dict = {}
  cost: float = 1.0
  needs: tuple[Path, ...] = ()


class _Running(NamedTuple):
  """A task whose process is alive."""

  task: Task
  process: subprocess.Popen
  started: float  # of the monotonic clock
  log_start: int  # bytes of the log that are older
  slot: int  # place among the processes at once


def main_command(flags: list[str]) -> list[str]:
  """Returns a command line of `jax_robust_kd.main` that ends with this process.

  It ends even where this process is killed, so that no workdir is ever written
  by two.
  """
  return [sys.executable, '-c', _CHILD, *flags]


def child() -> None:
  """Runs the main program until the process that started it is gone."""

  def wait() -> None:
    # Not `sys.stdin`, whose lock Python wants when it ends.
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
  after: Callable[[Failures], object],
) -> Failures:
  """Runs what is not finished, as many at once as allowed.

  A run that fails does not stop the others, but those that need it. However
  this ends early, the children save first.

  Args:
    tasks: in order; those that others need come before them.
    at_once: number of processes.
    environment: environment of the processes.
    after: called with the failures so far whenever a run has ended.

  Returns:
    The failures.

  Raises:
    Preempted: SIGTERM came.
    RunError: a log cannot be written.
  """
  waiting = [task for task in tasks if not is_done(task.folder)]
  failures: Failures = {}
  running: list[_Running] = []
  reported = time.monotonic()
  try:
    with processes.preemption() as is_preempted:
      while (waiting or running) and not is_preempted(0):
        for one in [r for r in running if r.process.poll() is not None]:
          running.remove(one)
          _end(one, failures)
          after(failures)
        for task in [t for t in waiting if failures.keys() & set(t.needs)]:
          waiting.remove(task)
          failures[task.folder] = 'not run, as its teacher failed'
          after(failures)
        ready = [t for t in waiting if all(map(is_done, t.needs))]
        for task in ready[: at_once - len(running)]:
          waiting.remove(task)
          slot = min(set(range(at_once)) - {one.slot for one in running})
          running.append(_start(task, environment, slot, at_once))
          console.say(_headline(tasks, task, failures, at_once))
        if time.monotonic() - reported > LINE_SECONDS:
          reported = time.monotonic()
          for one in running:
            lines = _read_log(one.task.folder, one.log_start)
            console.say(f'  {one.task.label}: {(lines or ["starting"])[-1]}')
        time.sleep(0.1)
  finally:
    _stop(running)
  if waiting or running:
    raise Preempted(
      'asked to end by SIGTERM; the runs are saved, the same command goes on'
    )
  return failures


def _stop(running: list[_Running]) -> None:
  """Has processes save and end; interrupted, it leaves them to end as we do."""
  for one in running:
    console.say(f'{one.task.label}: stopping, it saves first')
    one.process.terminate()
  for one in running:
    one.process.wait()
    _log_end(one)


def _start(
  task: Task, environment: Mapping[str, str], slot: int, at_once: int
) -> _Running:
  log = task.folder / 'log.txt'
  try:
    task.folder.mkdir(parents=True, exist_ok=True)
    if task.config:
      write_json(task.folder / 'config.json', task.config)
    with log.open('ab') as output:
      log_start = output.tell()
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
    cores.restrict(process.pid, slot, at_once)
  append(
    task.folder / 'attempts.jsonl', {'event': 'start', 'time': time.time()}
  )
  return _Running(task, process, time.monotonic(), log_start, slot)


def _log_end(one: _Running) -> float:
  """Logs how a process has ended; returns its seconds."""
  assert one.process.stdin is not None
  one.process.stdin.close()
  seconds = time.monotonic() - one.started
  line = {'event': 'end', 'seconds': seconds, 'code': one.process.returncode}
  append(one.task.folder / 'attempts.jsonl', line)
  return seconds


def _end(one: _Running, failures: Failures) -> None:
  task, code = one.task, one.process.returncode
  seconds = _log_end(one)
  if code == 0 and is_done(task.folder):
    console.say(f'{task.label}: done in {console.duration(seconds)}')
  else:
    failures[task.folder] = _reason(task, one.log_start, code)
    console.say(f'{task.label}: FAILED: {failures[task.folder]}')


def _reason(task: Task, log_start: int, code: int) -> str:
  """Returns the sentence with which a process ended."""
  if code < 0:
    name = signal.Signals(-code).name
    hint = '; is there enough memory?' if name == 'SIGKILL' else ''
    return f'killed by {name}{hint}'
  lines = _read_log(task.folder, log_start)
  for line in reversed(lines):
    if line.startswith(('error: ', 'stopped: ')):
      return line.partition(': ')[2]
  return f'exit code {code}: {lines[-1] if lines else "it said nothing"}'


def _read_log(folder: Path, start: int) -> list[str]:
  text = (folder / 'log.txt').read_bytes()[start:].decode(errors='replace')
  return [line.strip() for line in text.splitlines() if line.strip()]


def wall_clock(folder: Path) -> float | None:
  """Returns the seconds of a run over all attempts.

  None where they are not known: an attempt was cut by a kill of this program,
  or the run was made by another.
  """
  events = read_lines(folder / 'attempts.jsonl')
  seconds = [e['seconds'] for e in events if e['event'] == 'end']
  return sum(seconds) if seconds and 2 * len(seconds) == len(events) else None


def time_left(
  tasks: list[Task], failures: Failures, at_once: int
) -> float | None:
  """Returns the seconds still to go, at the speed of the finished runs.

  None before the first has finished.
  """
  done = [t for t in tasks if is_done(t.folder)]
  timed = [(seconds, t.cost) for t in done if (seconds := wall_clock(t.folder))]
  if not timed:
    return None
  seconds, costs = map(sum, zip(*timed, strict=True))
  left = [t for t in tasks if t not in done and t.folder not in failures]
  cost_left = sum(t.cost for t in left)
  return seconds / costs * cost_left / min(at_once, max(len(left), 1))


def _headline(
  tasks: list[Task], task: Task, failures: Failures, at_once: int
) -> str:
  left = time_left(tasks, failures, at_once)
  about = '' if left is None else f', about {console.duration(left)} to go'
  return f'run {tasks.index(task) + 1} of {len(tasks)}{about}: {task.label}'
