"""The command line.

  python -m jax_robust_kd.main --config configs/quickstart.py --workdir runs/q

Exit codes: 0 done, 1 the run cannot go on, 2 a mistake in what was given, 3 a
check is red: the numbers cannot be believed.
"""

from pathlib import Path
import sys

from absl import flags
from ml_collections import config_flags

from jax_robust_kd.core import RunError, UserError
from jax_robust_kd.memory import keep_freed_memory

USAGE = """usage: python -m jax_robust_kd.main --config FILE --workdir FOLDER

  --config FILE[:ARGUMENT]   settings, such as configs/rslad.py:cifar10
  --config.GROUP.KEY=VALUE   overrides one (they are in jax_robust_kd/config.py)
  --workdir FOLDER           for all files; the same command again goes on there
  --mode train|eval|check    train and evaluate; evaluate alone; evaluate and
                             say whether the numbers can be believed"""


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
  return ' '.join(line.strip() for line in (lines[0], *lines[1:])[-2:])


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  try:
    if {'-h', '--help'} & set(argv):
      print(USAGE)
      return 0
    values = parse(argv)
    keep_freed_memory()
    from jax_robust_kd import job

    level = job.run(values.config, Path(values.workdir), values.mode)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except RunError as error:
    print(f'stopped: {error}', file=sys.stderr)
    return 1
  return 3 if level == 'red' else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
