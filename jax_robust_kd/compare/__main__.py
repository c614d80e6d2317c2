r"""Runs, resumes and tabulates any set of methods at one budget.

  python -m jax_robust_kd.compare --workdir runs/compare --seeds 0,1 --configs \
    'configs/rslad.py:cifar10,gentle=configs/rslad.py:cifar10;attack.num_steps=3'
"""

import argparse
import os
from pathlib import Path
import sys
from typing import NamedTuple

from jax_robust_kd import config as config_lib
from jax_robust_kd import job
from jax_robust_kd.compare import entries as entry_lib
from jax_robust_kd.compare import files, plan, runner, workload
from jax_robust_kd.compare.entries import Entry
from jax_robust_kd.compare.plan import Planned
from jax_robust_kd.compare.tables import BUDGETS
from jax_robust_kd.core import UserError
from jax_robust_kd.runtime import console, lock
from jax_robust_kd.training import build

USAGE = """usage: python -m jax_robust_kd.compare --configs A,B --workdir FOLDER

  --configs ENTRY,ENTRY...   an entry is [label=]FILE[:ARGUMENT][;KEY=VALUE]...
                             with settings of its own; @FILE has one a line
  --config.GROUP.KEY=VALUE   a setting of all entries; an entry's own goes first
  --seeds 0,1,2              every entry runs with each (default: 0)
  --budget epochs|passes|own all train for the first entry's epochs; or for as
                             many network passes; or for their own epochs
  --jobs N                   runs at once (default: 1)
  --workdir FOLDER           for all files; the same command again goes on there

Teachers that configs ask for are trained once, in FOLDER, and shared."""


class Options(NamedTuple):
  """The command line."""

  entries: list[Entry]
  seeds: list[int]
  budget: str
  jobs: int
  workdir: Path
  shared: list[str]  # KEY=VALUE, for all entries


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f'{message}; --help shows how it is written')


def parse(argv: list[str]) -> Options:
  """Reads the command line.

  Raises:
    UserError: a mistake in it.
  """
  parser = _Parser(allow_abbrev=False, add_help=False)
  parser.add_argument('--configs', required=True)
  parser.add_argument('--workdir', required=True, type=Path)
  parser.add_argument('--seeds', default='0')
  parser.add_argument('--budget', default='epochs', choices=BUDGETS)
  parser.add_argument('--jobs', default=1, type=int)
  given, rest = parser.parse_known_args(argv)
  for word in rest:
    if not word.startswith('--config.') or '=' not in word:
      raise UserError(
        f'{word!r} is not a flag; settings are --config.GROUP.KEY=VALUE'
      )
  if given.jobs < 1:
    raise UserError(f'--jobs {given.jobs} must be at least 1')
  return Options(
    entry_lib.read_entries(given.configs),
    entry_lib.parse_seeds(given.seeds),
    given.budget,
    given.jobs,
    given.workdir,
    [word.removeprefix('--config.') for word in rest],
  )


def as_task(run: Planned) -> runner.Task:
  """Returns what the runner needs to know of a run."""
  flags = [*plan.flags_for(run.spec, run.config), f'--workdir={run.folder}']
  name = run.label if run.seed is None else f'{run.label}, seed {run.seed}'
  work = workload.operations(run.config, run.load)
  return runner.Task(
    name, run.folder, runner.main_command(flags), work, run.needs
  )


def compare(options: Options) -> bool:
  """Runs what is not finished and writes the tables.

  Returns:
    Whether all runs are finished.

  Raises:
    UserError: a mistake, before anything runs.
    RunError: a file cannot be written.
  """
  teachers, entries = plan.plan_entries(
    options.entries, options.shared, options.workdir
  )
  notes = plan.spend_alike(entries, options.budget)
  runs = teachers + [
    plan.with_seed(e, s) for s in options.seeds for e in entries
  ]
  for run in runs:
    job.check_workdir(run.folder, run.config, 'train')
  with lock.held(options.workdir):
    return _go(options, entries, runs, notes)


def _go(
  options: Options, entries: list[Planned], runs: list[Planned], notes: list
) -> bool:
  tasks = [as_task(run) for run in runs]
  teachers = [run for run in runs if run.group]
  files.show_plan(teachers + entries, runs, options.seeds)
  for note in notes:
    console.say(f'note: {note}')
  if not files.can_draw():
    console.say(
      'note: there will be no picture, as matplotlib is not installed'
    )
  given = _given_teachers(entries)

  def write(failed: dict[Path, str]) -> list:
    return files.write(options.workdir, given, runs, failed, notes)

  failed = runner.run_all(
    tasks, at_once=options.jobs, environment=_environment(options), after=write
  )
  files.show(options.workdir, write(failed))
  return not failed


def _given_teachers(entries: list[Planned]) -> list[Path]:
  """Returns the folders of teachers that were trained before."""
  folders = []
  for entry in entries:
    for name in build.make_method(entry.config).teachers:
      folder = Path(config_lib.teacher_group(entry.config, name)[1].checkpoint)
      if folder not in (*entry.needs, *folders):
        folders.append(folder)
  return folders


def _environment(options: Options) -> dict[str, str]:
  """Seeds share compiled programs, and several runs the device's memory."""
  environment = dict(os.environ)
  compiled = str((options.workdir / 'compiled').absolute())
  environment.setdefault('JAX_COMPILATION_CACHE_DIR', compiled)
  if options.jobs > 1:
    environment.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  return environment


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code, 1 where a run failed."""
  return console.guard(lambda: _main(argv))


def _main(argv: list[str]) -> int:
  if {'-h', '--help'} & set(argv):
    print(USAGE)
    return 0
  options = parse(argv[1:])
  workload.leave_devices_alone()
  return 0 if compare(options) else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv))
