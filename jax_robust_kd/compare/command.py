"""Any set of methods at one budget, as a command."""

from jax_robust_kd.commandline import Args
from jax_robust_kd.compare import run as run_lib
from jax_robust_kd.core import UserError
from jax_robust_kd.workdir import find_workdir


def run(args: Args) -> int:
  """Runs the command; returns its exit code, 1 where a run failed."""
  return 0 if run_lib.run(**read_options(args)) else 1


def read_options(args: Args) -> dict:
  """Returns the arguments of `run.run`.

  Raises:
    UserError: a flag has a value that cannot be.
  """
  for word in args.overrides:
    if '=' not in word:
      raise UserError(f'{word!r}: write --config.GROUP.KEY=VALUE')
  if args.jobs < 1:
    raise UserError(f'--jobs {args.jobs} must be at least 1')
  return {
    'configs': args.configs.split(','),
    'workdir': find_workdir(args.workdir),
    'seeds': parse_seeds(args.seeds),
    'budget': args.budget,
    'jobs': args.jobs,
    'settings': [word.removeprefix('--config.') for word in args.overrides],
  }


def parse_seeds(text: str) -> list[int]:
  """Reads '0,1,2'.

  Raises:
    UserError: not whole numbers from 0, or the same one twice.
  """
  words = [word.strip() for word in text.split(',')]
  if not all(word.isascii() and word.isdigit() for word in words):
    raise UserError(f'--seeds {text!r}: write whole numbers like 0,1,2')
  seeds = [int(word) for word in words]
  if len(set(seeds)) < len(seeds):
    raise UserError(f'--seeds {text!r} names a seed twice')
  return seeds
