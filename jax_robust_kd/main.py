"""The command line.

  python -m jax_robust_kd.main --config configs/quickstart.py --workdir runs/q

Exit codes: 0 done, 1 the run cannot go on, 2 a mistake in what was given, 3 a
check is red: the numbers cannot be believed, 75 asked to end by SIGTERM or
another process of the run was lost: start the same command again.
"""

from collections.abc import Callable
import os
from pathlib import Path
import sys
import traceback

from absl import flags
from ml_collections import config_flags

from jax_robust_kd.core import Preempted, UserError
from jax_robust_kd.runtime import console
from jax_robust_kd.runtime.malloc import keep_freed_memory

USAGE = """usage: python -m jax_robust_kd.main --config FILE --workdir FOLDER

  --config FILE[:ARGUMENT]   settings, such as configs/rslad.py:cifar10
  --config.GROUP.KEY=VALUE   overrides one (they are in jax_robust_kd/config.py)
  --workdir FOLDER           for all files; the same command again goes on there
  --mode train|eval|check    train and evaluate; evaluate alone; evaluate and
                             say whether the numbers can be believed
  --distributed              one of several processes, each on its own devices,
                             which share the workdir. On TPU pods, under SLURM,
                             Open MPI or Kubernetes they find one another;
                             elsewhere give all three of
  --coordinator HOST:PORT    where process 0 listens
  --num_processes N          how many there are
  --process_id I             which one this is, from 0
  --start_timeout SECONDS    how long to wait for the others (300)"""


def parse(argv: list[str]) -> flags.FlagValues:
  """Reads the command line.

  Raises:
    UserError: an unknown flag or key, or a value of the wrong type.
  """
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config',
    help_string='File with the settings, such as configs/quickstart.py.',
    lock_config=True,
    flag_values=values,
    sys_argv=argv,
  )
  flags.DEFINE_string(
    'workdir', None, 'Folder for all files of the run.', flag_values=values
  )
  flags.DEFINE_enum(
      'mode', 'train', ['train', 'eval', 'check'],
      'train (and evaluate), eval alone, or check.', flag_values=values,
  )  # fmt: skip
  flags.DEFINE_bool(
    'distributed', False, 'One of several processes.', flag_values=values
  )
  flags.DEFINE_string(
    'coordinator', '', 'HOST:PORT of process 0.', flag_values=values
  )
  for name, default in (
    ('num_processes', 0),
    ('process_id', -1),
    ('start_timeout', 300),
  ):
    flags.DEFINE_integer(name, default, 'See --help.', flag_values=values)
  for before, word in zip(argv, argv[1:], strict=False):
    if word.startswith('--config=') or before == '--config':
      path = word.removeprefix('--config=').partition(':')[0]
      if not Path(path).is_file():
        raise UserError(f'--config {path}: there is no such file')
  try:
    rest = values(argv)[1:]
    given = values.config
  except UserError:
    raise
  except Exception as error:  # flags raises many kinds for a user's typo
    raise UserError(_sentence(error)) from None
  if rest:
    raise UserError(f'{rest[0]!r} is not a flag; write --{rest[0]}=...')
  if given is None or not values.workdir:
    raise UserError(
      'give --config FILE and --workdir FOLDER, for example --config '
      'configs/quickstart.py --workdir runs/quickstart'
    )
  return values


def _sentence(error: Exception) -> str:
  lines = str(error).strip().strip('\'"').splitlines() or [repr(error)]
  if isinstance(error, (KeyError, AttributeError)) and ' ' not in lines[0]:
    return f'config has no key {lines[0]!r}; see jax_robust_kd/config.py'
  return ' '.join(line.strip() for line in (lines[0], *lines[1:])[-2:])


def join_others(
  values: flags.FlagValues, argv: list[str], module: str
) -> int | None:
  """Joins the other processes of a run, if there are others.

  Args:
    values: of the flags.
    argv: the command line.
    module: what `python -m` runs.

  Returns:
    The exit code of the child that ran everything, or None to go on here.
  """
  if not values.distributed:
    if values.coordinator or values.num_processes or values.process_id >= 0:
      raise UserError('--coordinator and its like need --distributed')
    return None
  from jax_robust_kd.runtime import processes

  start = processes.Start(
    values.coordinator,
    values.num_processes,
    values.process_id,
    values.start_timeout,
  )
  processes.check_start(start)
  if not processes.is_child():
    command = [sys.executable, '-m', module, *argv[1:]]
    return processes.supervise(command, start.timeout)
  processes.follow_parent()
  processes.join(start)
  if not processes.is_first():
    console.mute()
  return None


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  return console.guard(lambda: _main(argv))


def _main(argv: list[str]) -> int:
  if {'-h', '--help'} & set(argv):
    print(USAGE)
    return 0
  values = parse(argv)
  keep_freed_memory()
  code = join_others(values, argv, 'jax_robust_kd.main')
  if code is not None:
    return code
  from jax_robust_kd import job

  level = job.run(values.config, Path(values.workdir), values.mode)
  return 3 if level == 'red' else 0


def _report(unraisable) -> None:
  """Prints an error nobody could raise, unless a failed save was given up.

  The library that writes checkpoints says so once for each array, after the
  error itself.
  """
  if 'Event loop is closed' not in str(unraisable.exc_value):
    sys.__unraisablehook__(unraisable)


def run_command(main: Callable[[list[str]], int]) -> None:
  """Runs a command and exits; one of several processes does so at once.

  After an error the runtime would wait for the others, who wait for this one.
  """
  sys.unraisablehook = _report
  from jax_robust_kd.runtime import processes

  if not processes.is_child():
    sys.exit(main(sys.argv))
  try:
    code = main(sys.argv)
  except Exception as error:
    if not processes.is_loss(error):
      traceback.print_exc()
      code = 1
    else:
      print(f'stopped: {processes.LOST}; {processes.AGAIN}', file=sys.stderr)
      code = Preempted.exit_code
  if code:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
  run_command(main)
