"""Names of settings: old ones, unknown ones, and those that differ."""

from collections.abc import Iterable
import difflib
import inspect

from ml_collections import ConfigDict

from jax_robust_kd.core import UserError
from jax_robust_kd.data.source import is_own
from jax_robust_kd.methods import options

# Names that keys had before -> those they have now.
RENAMED = {
  'contrast': 'baseline',
  'attack': 'train_attack',
  'eval.attack': 'validation.attack',
  'eval.every_epochs': 'validation.every_epochs',
  'eval.num_checked': 'check.num_images',
}


class Settings(ConfigDict):
  """A group of settings that refuses the old names of its keys."""

  def __init__(self, fields=None, type_safe=True, prefix=None):
    object.__setattr__(self, '_prefix', prefix)
    super().__init__(fields, type_safe=type_safe)

  def __getitem__(self, key):
    self._refuse(key)
    return super().__getitem__(key)

  def __setitem__(self, key, value):
    self._refuse(key)
    super().__setitem__(key, value)

  def _refuse(self, key):
    if self._prefix is not None:
      refuse_old_name(f'{self._prefix}{key}')


def refuse_old_name(key: str) -> None:
  """Refuses the name that a setting had before.

  Raises:
    UserError: with the name that it has now.
  """
  for old, new in RENAMED.items():
    if key == old or key.startswith(f'{old}.'):
      raise UserError(f'{key} is now {new}{key[len(old) :]}')


def upgrade(stored: dict) -> dict:
  """Returns the settings of a finished run, with the words of today.

  Args:
    stored: its config.json; not modified.
  """
  upgraded = {
    k: dict(v) if isinstance(v, dict) else v for k, v in stored.items()
  }
  for old, new in RENAMED.items():
    *groups, key = old.split('.')
    source = upgraded.get(groups[0], {}) if groups else upgraded
    if key in source:
      *groups, name = new.split('.')
      target = upgraded.setdefault(groups[0], {}) if groups else upgraded
      target[name] = source.pop(key)
  method, data = upgraded.get('method', {}), upgraded.get('data', {})
  if method.get('inner') in options.RENAMED:
    method['inner'] = options.RENAMED[method['inner']]
  if is_own(data.get('name', 'digits')):
    data.setdefault('val', 'last')  # before there was a choice
  return upgraded


def check_arguments(group: str, function, given: dict) -> None:
  """Checks a group's keys against the arguments of what it configures.

  Raises:
    UserError: an argument the function does not have.
  """
  known = list(inspect.signature(function).parameters)
  for key in given:
    if key not in known:
      raise UserError(f'{group}.{key} is unknown; {hint(key, known)}')


def hint(key: str, known: Iterable[str]) -> str:
  """Returns what may have been meant, and all there is."""
  near = difflib.get_close_matches(key, known, 1)
  meant = f'did you mean {near[0]!r}? ' if near else ''
  return f'{meant}known: {", ".join(sorted(known))}'


def differing_keys(a: dict, b: dict, prefix: str = '') -> list[str]:
  """Returns the dotted names of the entries in which two configs differ."""
  names = []
  for key in sorted(a.keys() | b.keys()):
    left, right = a.get(key), b.get(key)
    if isinstance(left, dict) and isinstance(right, dict):
      names += differing_keys(left, right, f'{prefix}{key}.')
    elif left != right:
      names.append(f'{prefix}{key}')
  return names
