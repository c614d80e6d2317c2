"""Any set of methods at one budget: `python -m jax_robust_kd.compare`."""

import argparse
from pathlib import Path
import sys

from jax_robust_kd.compare.budget import BUDGETS
from jax_robust_kd.compare.run import run
from jax_robust_kd.core import UserError
from jax_robust_kd.runtime import console

EXAMPLE = """example:
  python -m jax_robust_kd.compare --workdir runs/compare --seeds 0,1 \\
    --configs configs/rslad.py:digits,configs/adaad.py:digits

Runs with settings of their own are written in Python:
  def get_runs():
    c = load_config('configs/rslad.py:digits')
    c.method.scale = 1.0
    return [('rslad', load_config('configs/rslad.py:digits')), ('scaled', c)]"""


class _Parser(argparse.ArgumentParser):
  def error(self, message):
    raise UserError(f'{message}; --help shows how it is written')


def parse(argv: list[str]) -> argparse.Namespace:
  """Reads the command line; the names are the arguments of `run`.

  Raises:
    UserError: a mistake in it.
  """
  parser = _Parser(
    'python -m jax_robust_kd.compare',
    epilog=EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    '--configs',
    required=True,
    metavar='FILE[:ARGUMENT],...',
    help='config files, or one Python file that defines get_runs()',
  )
  add(
    '--workdir',
    required=True,
    type=Path,
    help='for all files; the same command again goes on there',
  )
  add('--seeds', default='0', help='such as 0,1,2: each config runs with each')
  add(
    '--budget',
    default='epochs',
    choices=BUDGETS,
    help="the first config's epochs, its network passes, or own epochs",
  )
  add('--jobs', default=1, type=int, help='runs at once')  # fmt: skip
  options, rest = parser.parse_known_args(argv)
  for word in rest:
    if not word.startswith('--config.') or '=' not in word:
      raise UserError(
        f'{word!r} is not a flag; settings are --config.GROUP.KEY=VALUE'
      )
  if options.jobs < 1:
    raise UserError(f'--jobs {options.jobs} must be at least 1')
  options.configs = options.configs.split(',')
  options.seeds = parse_seeds(options.seeds)
  options.settings = [word.removeprefix('--config.') for word in rest]
  return options


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


def main(argv: list[str]) -> int:
  """Runs the command; returns its exit code, 1 where a run failed."""
  return console.guard(lambda: 0 if run(**vars(parse(argv[1:]))) else 1)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
