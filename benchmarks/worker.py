"""One half of a comparison: a process that runs functions when it is told to.

The steering process starts one worker for our program and one for PyTorch,
and then has them work in turns, so that both see the same machine. This module
does without JAX and PyTorch: PyTorch lives in another environment, and the
steering process must stay small, since a child's peak memory as the kernel
counts it is never below its parent's.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path
import resource
import subprocess
import sys
import time
from typing import Any, NamedTuple

from jax_robust_kd.runtime.malloc import keep_freed_memory

ROOT = Path(__file__).parent.parent
# No further round begins once an entry has used so many seconds of rounds.
_ENOUGH = 30.0
_LEAST_ROUNDS = 2


class Work(NamedTuple):
  """What a worker can do.

  Attributes:
    runs: name -> function that does the work once and waits for its end.
    facts: what else is known, as JSON.
    shares: run -> {kind of layer: share of the time}, for what can be profiled.
  """

  runs: dict[str, Callable[[], Any]]
  facts: dict
  shares: dict[str, Callable[[], dict[str, float]]]


def cores() -> int:
  """How many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def serve(setup: Callable[[dict], Work]) -> None:
  """Builds what the command line describes, then obeys standard input.

  Every run is done once before the first answer, to warm up. A command is a
  JSON list: ['time', run], ['share', run] or ['peak'].
  """
  keep_freed_memory()  # on both sides, as our program does
  work = setup(json.loads(sys.argv[1]))
  for run in work.runs.values():
    run()
  print(json.dumps({**work.facts, 'runs': list(work.runs)}), flush=True)
  for line in sys.stdin:
    command, *names = json.loads(line)
    if command == 'time':
      begin = time.perf_counter()
      work.runs[names[0]]()
      answer: Any = time.perf_counter() - begin
    elif command == 'share':
      answer = work.shares[names[0]]() if names[0] in work.shares else {}
    else:
      answer = _peak_megabytes()
    print(json.dumps(answer), flush=True)


def _peak_megabytes() -> float:
  unit = 1 if sys.platform == 'darwin' else 1024  # bytes there, KiB here
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def start(python: str, module: str, spec: dict) -> subprocess.Popen:
  """Starts a worker; read its facts with `answer` before asking anything."""
  return subprocess.Popen(
    [python, '-m', module, json.dumps(spec)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    # What a user has cached or forced elsewhere must not decide a number.
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '1',
      'JAX_ENABLE_COMPILATION_CACHE': 'false',
    },
  )


def answer(process: subprocess.Popen) -> Any:
  """Reads the next answer.

  Raises:
    RuntimeError: the worker ended instead; its own words are on stderr.
  """
  assert process.stdout
  line = process.stdout.readline()
  if not line:
    raise RuntimeError(f'its process ended with code {process.wait()}')
  return json.loads(line)


def ask(process: subprocess.Popen, *command: str) -> Any:
  """Sends a command and waits for the answer."""
  assert process.stdin
  try:
    process.stdin.write(json.dumps(command) + '\n')
    process.stdin.flush()
  except BrokenPipeError:
    pass  # it has ended, which `answer` tells
  return answer(process)


def stop(process: subprocess.Popen) -> None:
  """Ends a worker, whatever its state."""
  process.kill()
  process.communicate()


def compare(sides: dict[str, tuple[str, str]], spec: dict, rounds: int) -> dict:
  """Times one entry on every side in turns, each in a fresh process.

  Args:
    sides: name -> (python, module of the worker).
    spec: of the entry.
    rounds: at most; fewer when a round is long.

  Returns:
    {side: {'facts', 'times': {run: [seconds]}, 'shares', 'peak'}}.

  Raises:
    RuntimeError: a worker ended, for want of memory perhaps.
  """
  found: dict[str, dict] = {}
  processes: dict[str, subprocess.Popen] = {}
  try:
    for side, (python, module) in sides.items():
      # One after the other: neither warms up while the other compiles.
      processes[side] = start(python, module, spec)
      facts = answer(processes[side])
      times = {run: [] for run in facts.pop('runs')}
      found[side] = {'facts': facts, 'times': times}
    _take_turns(processes, found, rounds)
    for side, process in processes.items():
      found[side]['peak'] = ask(process, 'peak')
      runs = found[side]['times'] if spec['kind'] == 'networks' else ()
      found[side]['shares'] = {r: ask(process, 'share', r) for r in runs}
  finally:
    for process in processes.values():
      stop(process)
  return found


def _take_turns(processes: dict, found: dict, rounds: int) -> None:
  """Appends the seconds of every round to `found`."""
  begin = time.perf_counter()
  for i in range(rounds):
    if i >= _LEAST_ROUNDS and time.perf_counter() - begin > _ENOUGH:
      return
    runs = {run: 0 for side in processes for run in found[side]['times']}
    for run in runs:
      for side, process in processes.items():
        if run in found[side]['times']:
          found[side]['times'][run].append(ask(process, 'time', run))
