"""How commands are written: their flags, their settings and their help.

Nothing is imported before it is needed, so that help comes at once.
"""

from collections.abc import Callable
import textwrap
from types import SimpleNamespace
from typing import Any, NamedTuple

# What a command is given: an attribute for each flag, `config` where it takes
# one, and what `parse` adds.
Args = SimpleNamespace


class Flag(NamedTuple):
  """A flag.

  Attributes:
    name: without dashes.
    value: what stands for its value in the help, '' for a switch.
    default: of the flag's type; None: it must be given.
    about: its help.
    choices: the values it may have, () for any.
  """

  name: str
  value: str
  default: Any
  about: str
  choices: tuple[str, ...] = ()


class Command(NamedTuple):
  """A command.

  Attributes:
    about: what it does, one sentence.
    example: a command line.
    run: (args) -> exit code.
    flags: its own.
    config: 'given' for --config and --config.KEY=VALUE, 'or of the run' where
      --config may be left out in the workdir of a run, 'shared' for
      --config.KEY=VALUE alone, kept as text in `args.overrides`; '' for none.
    files: what stands for positional arguments in the help, '' for none.
  """

  about: str
  example: str
  run: Callable[[Args], int]
  flags: tuple[Flag, ...] = ()
  config: str = ''
  files: str = ''


WORKDIR = Flag(
  'workdir', 'FOLDER', None, 'all files; the same command again goes on there'
)
MODE = Flag(
  'mode', 'MODE', 'train', 'train and evaluate; evaluate alone; evaluate and '
  'say whether the numbers can be believed', ('train', 'eval', 'check'),
)  # fmt: skip
PROCESSES = (
  Flag(
    'distributed', '', False, 'one of several processes, each on its own '
    'devices, which share the workdir. On TPU pods, under SLURM, Open MPI or '
    'Kubernetes they find one another; elsewhere give all three of',
  ),
  Flag('coordinator', 'HOST:PORT', '', 'where process 0 listens'),
  Flag('num_processes', 'N', 0, 'how many there are'),
  Flag('process_id', 'I', -1, 'which one this is, from 0'),
  Flag('start_timeout', 'SECONDS', 300, 'how long to wait for the others'),
)  # fmt: skip
MODEL = (
  Flag('model', 'MODEL', '', 'in place of a run of --workdir: file of weights, '
       'zoo:NAME or another run; --workdir is then a folder beside it'),
  Flag('arch', 'NAME:FIELDS', '', 'of a file: wide_resnet:depth=34,width=10; '
       'or as its keys say'),
  Flag('data', 'NAME', '', "of a model's images, as config.data.name"),
  Flag('threat', 'NAME', '', 'as config.eval.threat: linf_8_255'),
  Flag('zoo', 'FOLDER', '', 'files of zoo:NAME; or JAX_ROBUST_KD_ZOO'),
)  # fmt: skip

_CONFIG = (
  Flag('config', 'CONFIG', None, 'a config that comes with the package or a '
       'file, and its argument: rslad:cifar10, ./mine.py'),
)  # fmt: skip
_OVERRIDE = Flag(
  'config.GROUP.KEY', 'VALUE', '', 'overrides a setting; `jax-robust-kd config`'
  ' lists them',
)  # fmt: skip


def parse(command: Command, program: str, argv: list[str]) -> Args:
  """Reads the words after the name of a command.

  Args:
    command: what they are for.
    program: modules and words that start it, as `python -m` takes them.
    argv: the words.

  Returns:
    The flags by name; `config`, `overrides` or `files` where the command has
    them; `words`, which `python` runs this very command by.

  Raises:
    UserError: an unknown flag or key, or a value of the wrong type.
  """
  from jax_robust_kd.core import UserError

  words = ['-m', *program.split(), *argv]
  spec, overrides = '', []
  if command.config:
    spec, overrides, argv = split_config(argv)
  values, files = _parse_flags(command, argv)
  if files and not command.files:
    raise UserError(f'{files[0]!r} is not a flag; write --{files[0]}=...')
  missing = [
    f'--{flag.name} {flag.value}'
    for flag in command.flags
    if flag.default is None
    and not values[flag.name]
    and not (flag.name == 'workdir' and values.get('model'))
  ]
  if command.config == 'given' and not spec:
    missing.insert(0, '--config CONFIG')
  if command.files and not files:
    missing.append(command.files)
  if missing:
    raise UserError(
      f'give {" and ".join(missing)}, for example: {command.example}'
    )
  args = Args(**values, words=words, files=files, overrides=overrides)
  if command.config in ('given', 'or of the run'):
    from jax_robust_kd import settings

    args.spec = spec
    if values.get('threat'):
      overrides.append(f'--config.eval.threat={values["threat"]}')
    if values.get('model') and not spec:
      args.config = settings.read_data(args.data, overrides)
    elif spec:
      args.config = settings.read(spec, overrides)
    else:
      args.config = settings.read_run(args.workdir, overrides)
  return args


def split_config(argv: list[str]) -> tuple[str, list[str], list[str]]:
  """Takes the words about the config from a command line.

  Returns:
    The config's name, its overrides as single words, and all other words.
  """
  spec, overrides, rest = '', [], []
  words = list(argv)
  while words:
    word = words.pop(0)
    name, equals, value = word.partition('=')
    dashed = name.startswith('-')
    name = name.lstrip('-')
    if not dashed or name.partition('.')[0] not in ('config', 'noconfig'):
      rest.append(word)
      continue
    if not equals and words and not words[0].startswith('--'):
      value = words.pop(0)
      word = f'--{name}={value}'
    if name == 'config':
      spec = value
    else:
      overrides.append(word)
  return spec, overrides, rest


def _parse_flags(command: Command, argv: list[str]) -> tuple[dict, list[str]]:
  """Returns the values by name, and what is left."""
  from absl import flags

  from jax_robust_kd.core import UserError

  values = flags.FlagValues()
  define = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
  }
  for name, _, default, about, choices in command.flags:
    if choices:
      flags.DEFINE_enum(name, default, list(choices), about, flag_values=values)
    else:
      kind = define.get(type(default), flags.DEFINE_string)
      kind(name, default, about, flag_values=values)
  try:
    rest = values(['', *argv])[1:]
  except flags.Error as error:
    text = ' '.join(str(error).split())
    for flag in command.flags:
      if text == f'Missing value for flag --{flag.name}':
        raise UserError(f'give --{flag.name} {flag.value}') from None
    hint = '; settings are --config.GROUP.KEY=VALUE' if command.config else ''
    raise UserError(text + hint) from None
  return {flag.name: values[flag.name].value for flag in command.flags}, rest


def usage(command: Command, program: str) -> str:
  """Returns the help of a command.

  Args:
    command: what it is of.
    program: how it is started.
  """
  own = list(command.flags)
  if command.config != 'shared' and command.config:
    own = [*_CONFIG, _OVERRIDE, *own]
  elif command.config:
    own = [*own, _OVERRIDE]
  needed = [
    f'--{flag.name} {flag.value}'
    for flag in own
    if flag.default is None
    and not (flag.name == 'config' and command.config == 'or of the run')
  ]
  head = ' '.join([program, *needed, command.files]).strip()
  return '\n'.join(
    [
      f'usage: {head}', '', *textwrap.wrap(command.about, 80), '',
      *(line for flag in own for line in _help(flag)), '',
      f'example:\n  {command.example}',
    ]
  )  # fmt: skip


def _help(flag: Flag) -> list[str]:
  value = '|'.join(flag.choices) or flag.value
  head = f'  --{flag.name}{"=" if "." in flag.name else " "}{value}'.rstrip()
  about = flag.about
  if flag.default not in ('', None, 0, -1):  # False is 0
    about += f' (default: {flag.default})'
  lines = textwrap.wrap(about, 50)
  if len(head) > 28:
    return [head, *(f'{"":30}{line}' for line in lines)]
  return [f'{head if not i else "":30}{line}' for i, line in enumerate(lines)]
