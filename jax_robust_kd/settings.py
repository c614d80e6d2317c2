"""Configs with overrides, and where the value of each setting is from."""

from collections.abc import Callable
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, workdir
from jax_robust_kd.config import Config
from jax_robust_kd.config_files import find_files, in_words
from jax_robust_kd.core import UserError
from jax_robust_kd.methods import METHODS
from jax_robust_kd.models import MODELS
from jax_robust_kd.runtime.imports import absolute, load_object, names_object


def read(spec: str, overrides: list[str]) -> Config:
  """Reads a config and overrides settings of it.

  Args:
    spec: a config's name or file, and its argument: 'rslad:digits'.
    overrides: '--config.GROUP.KEY=VALUE' each.

  Raises:
    UserError: no such config, an unknown key, or a value of the wrong type.
  """
  return _override_beside(config_lib.load_config(spec), overrides, spec)


def _override_beside(c: Config, overrides: list[str], spec: str) -> Config:
  path, _, _ = config_lib.locate(spec).partition(':')
  return override(c, overrides, Path(path).parent)


def read_run(folder: str, overrides: list[str]) -> Config:
  """Reads the config of a run, as `read` does.

  Raises:
    UserError: as there, or there is no run.
  """
  return override(workdir.read_config(folder), overrides)


def read_data(name: str, overrides: list[str]) -> Config:
  """Returns the defaults for the images of a data set, as `read` does.

  Raises:
    UserError: as there, or no name.
  """
  if not name:
    raise UserError('give --data NAME, such as --data cifar10')
  c = config_lib.base_config('digits' if name == 'digits' else 'cifar10')
  c.data.name = name
  return override(c, overrides)


def override(c: Config, overrides: list[str], folder: Path = Path()) -> Config:
  """Overrides settings; locks the config.

  Args:
    c: the config.
    overrides: '--config.GROUP.KEY=VALUE' each.
    folder: where files that they name are looked up first.

  Raises:
    UserError: an unknown key, a whole group, or a value of the wrong type.
  """
  for word in overrides:
    config_lib.refuse_old_name(_key(word))
    _refuse_group(c, word)
  for group in ('teacher', 'clean_teacher'):
    _add_teacher_settings(c, group, overrides)
  for word in overrides:
    _find_field(c, word, overrides, folder)
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', c, flag_values=values, sys_argv=['', *overrides]
    )
    values(['', *overrides])
  except UserError:
    raise
  except Exception as error:  # flags raises many kinds for a user's typo
    raise UserError(in_words(error)) from None
  find_files(values.config, folder)
  return values.config


def resolved(spec: str, overrides: list[str]) -> list[tuple[str, Any, str]]:
  """Returns (key, value, source) of every setting of a config.

  Args and errors are those of `read`.

  Returns:
    The source is 'default', 'config' or 'command line'.
  """
  loaded = config_lib.load_config(spec)
  # The defaults of the small set differ.
  dataset = 'digits' if loaded.data.name == 'digits' else 'cifar10'
  default = flat(config_lib.base_config(dataset))
  before, given = flat(loaded), {_key(word) for word in overrides}
  rows = []
  for key, value in flat(_override_beside(loaded, overrides, spec)).items():
    same = key in default and default[key] == value
    source = 'default' if same and before.get(key) == value else 'config'
    rows.append((key, value, 'command line' if key in given else source))
  return rows


def flat(group: Config, prefix: str = '') -> dict[str, Any]:
  """Returns the settings of a config by their dotted names."""
  found = {}
  for key, value in group.items():
    if isinstance(value, ConfigDict):
      found |= flat(value, f'{prefix}{key}.')
    else:
      found[prefix + key] = value
  return found


def _key(word: str) -> str:
  """Returns 'GROUP.KEY' of '--config.GROUP.KEY=VALUE'."""
  return word.partition('=')[0].partition('.')[2]


def _refuse_group(c: Config, word: str) -> None:
  key = _key(word)
  inside = [name for name in flat(c) if name.startswith(key + '.')]
  if inside:
    raise UserError(
      f'{word}: {key} is a group; override its settings one by one, as in '
      f'--config.{inside[0]}=...'
    )


def _find_field(
  c: Config, word: str, overrides: list[str], folder: Path
) -> None:
  """Adds what a model or method knows but the config does not name.

  Raises:
    UserError: nobody knows it.
  """
  *groups, field = _key(word).partition('[')[0].split('.')
  group: Any = c
  for depth, name in enumerate([*groups, field]):
    prefix = '.'.join(groups[:depth])
    if isinstance(group, ConfigDict) and name in group:
      group = group[name]
      continue
    factory = _factory(c, prefix, overrides, folder)
    known = dict(group) if isinstance(group, ConfigDict) else {}
    if factory:
      about = inspect.signature(factory).parameters
      known = {k: p.default for k, p in about.items() if _settable(p.default)}
    if depth < len(groups) or name not in known:
      key = f'{prefix}.{name}'.lstrip('.')
      raise UserError(f'{key} is unknown; {config_lib.hint(name, known)}')
    with c.unlocked():
      group[name] = known[name]


def _settable(default: Any) -> bool:
  return isinstance(default, (bool, int, float, str, tuple))


def _factory(
  c: Config, group: str, overrides: list[str], folder: Path
) -> Callable | None:
  """Returns what takes the settings of a group as arguments, if one does."""
  table = {'student': MODELS, 'peer': MODELS, 'method': METHODS}.get(group)
  if table is None:
    return data.make_augment if group == 'data.augment' else None
  names = [w.partition('=')[2] for w in overrides if _key(w) == f'{group}.name']
  name = absolute([c[group].name, *names][-1], folder)
  if group == 'peer' and not name:
    raise UserError('peer.name is empty; set it before other fields of peer')
  if names_object(name):
    return load_object(f'{group}.name', name)
  return table.get(name)


def _add_teacher_settings(c: Config, group: str, overrides: list[str]) -> None:
  """Adds what is overridden of the config that trains a teacher.

  Raises:
    UserError: there is no such config, or what `override` raises on it.
  """
  prefix = f'--config.{group}.set.'
  words = [
    f'--config.{word.removeprefix(prefix)}'
    for word in overrides
    if word.startswith(prefix)
  ]
  if not words:
    return
  config = f'{group}.config'
  specs = [w.partition('=')[2] for w in overrides if _key(w) == config]
  spec = [c[group].config, *specs][-1]
  if not spec:
    raise UserError(
      f'{prefix[:-1]} changes the config that trains a teacher; set '
      f'--config.{config} to one'
    )
  teacher = flat(read(spec, words))
  with c.unlocked():
    for key in map(_key, words):
      value = teacher[key]
      for name in reversed(key.split('.')):
        value = {name: value}
      c[group].set.update(value)


def run(args: SimpleNamespace) -> int:
  """Prints a config; returns the exit code of the command."""
  for key, value, source in resolved(args.spec, args.overrides):
    end = '' if source == 'default' else f'  # {source}'
    print(f'{key} = {value!r}{end}')
  return 0
