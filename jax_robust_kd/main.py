"""Trains and evaluates a config.

  python -m jax_robust_kd.main --config configs/quickstart.py --workdir runs/q

Exit codes: 0 done, 1 the run cannot go on, 2 a mistake in what was given, 3 a
check is red: the numbers cannot be believed, 75 asked to end by SIGTERM or
another process of the run was lost: start the same command again.
"""

from collections.abc import Callable
import os
import sys
import traceback

import jax

from jax_robust_kd import commandline
from jax_robust_kd.commandline import Args, Command
from jax_robust_kd.core import Preempted, UserError
from jax_robust_kd.runtime import console
from jax_robust_kd.runtime.malloc import keep_freed_memory
from jax_robust_kd.workdir import find_workdir

_PROGRAM = 'jax_robust_kd.main'


def run(args: Args) -> int:
  """Runs a config: `args.mode` is 'train', 'eval' or 'check'.

  Returns:
    0, or 3 where a check is red.
  """
  workdir = find_workdir(args.workdir or '')
  keep_freed_memory()
  code = join_others(args)
  if code is not None:
    return code
  check_devices()
  if getattr(args, 'model', ''):
    from jax_robust_kd import evaluate_file

    evaluate_file.run(args, workdir if args.workdir else None)
    return 0
  from jax_robust_kd import job

  level = job.run(args.config, workdir, args.mode)
  return 3 if level == 'red' else 0


COMMAND = Command(
  'Trains and evaluates a config, and all that it needs.',
  f'python -m {_PROGRAM} --config configs/quickstart.py --workdir runs/q',
  run,
  (commandline.WORKDIR, commandline.MODE, *commandline.PROCESSES),
  config='given',
)


def join_others(args: Args) -> int | None:
  """Joins the other processes of a run, if there are others.

  Args:
    args: with `commandline.PROCESSES` among the flags.

  Returns:
    The exit code of the child that ran everything, or None to go on here.
  """
  if not args.distributed:
    if args.coordinator or args.num_processes or args.process_id >= 0:
      raise UserError('--coordinator and its like need --distributed')
    return None
  from jax_robust_kd.runtime import processes

  start = processes.Start(
    args.coordinator, args.num_processes, args.process_id, args.start_timeout
  )
  processes.check_start(start)
  if not processes.is_child():
    return processes.supervise([sys.executable, *args.words], start.timeout)
  processes.follow_parent()
  processes.join(start)
  if not processes.is_first():
    console.mute()
  return None


def check_devices() -> None:
  """Finds the devices.

  Raises:
    UserError: there are none of the kind that was asked for.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    asked = os.environ.get('JAX_PLATFORMS', '')
    reason = str(error).strip().splitlines() or ['JAX does not say why']
    raise UserError(
      f'JAX_PLATFORMS={asked} finds no device ({reason[-1]}); unset it, or set '
      'JAX_PLATFORMS=cpu'
    ) from None


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  return console.guard(lambda: _main(argv))


def _main(argv: list[str]) -> int:
  if {'-h', '--help'} & set(argv):
    print(commandline.usage(COMMAND, f'python -m {_PROGRAM}'))
    return 0
  return run(parse(argv))


def parse(argv: list[str]) -> Args:
  """Reads the command line.

  Raises:
    UserError: an unknown flag or key, or a value of the wrong type.
  """
  return commandline.parse(COMMAND, _PROGRAM, argv[1:])


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
