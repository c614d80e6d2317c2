"""Configs in files: those of users, and those that come with the package."""

import ast
import contextlib
from pathlib import Path
import runpy
from typing import Any

from ml_collections import ConfigDict

from jax_robust_kd.core import UserError
from jax_robust_kd.runtime.imports import absolute

# Settings that may name an object of one's own, beside `eval.suite`.
OWN = (
  'method.name',
  'student.name',
  'peer.name',
  'data.name',
  'teacher.function',
  'clean_teacher.function',
  'baseline',
  'validation.attack',
)


def locate(spec: str) -> str:
  """Returns the path of a config, with its argument.

  Args:
    spec: 'rslad:digits', the name of a config that comes with the package, or
      'path/to/config.py:digits', from here or from the folder of the project.

  Raises:
    UserError: there is none.
  """
  path, colon, argument = spec.partition(':')
  package = Path(__file__).parent
  places = [Path(path), package.parent / path, package / path]
  if path in shipped():
    places = [shipped()[path]]
  for place in places:
    if place.is_file():
      return f'{place}{colon}{argument}'
  raise UserError(
    f'config {spec!r}: there is no file {path}; give a path, or the name of '
    'one that comes with the package, such as rslad:digits'
  )


def shipped() -> dict[str, Path]:
  """Returns the configs that come with the package, by name."""
  package = Path(__file__).parent
  # Beside the package in the project, inside of it once installed.
  folders = (package.parent / 'configs', package / 'configs')
  return {p.stem: p for folder in folders for p in sorted(folder.glob('*.py'))}


def load_config(spec: str) -> Any:
  """Reads a config, see `locate`.

  Raises:
    UserError: there is none, or reading it fails.
  """
  path, _, argument = locate(spec).partition(':')
  try:
    get_config = runpy.run_path(path).get('get_config')
    if get_config is None:
      raise UserError(f'config {spec!r}: {path} defines no get_config()')
    c = get_config(argument) if argument else get_config()
  except UserError:
    raise
  except Exception as error:  # whatever a file of the user's may raise
    raise UserError(
      f'config {spec!r} cannot be read: {type(error).__name__}: '
      f'{in_words(error)}'
    ) from None
  if not isinstance(c, ConfigDict):
    raise UserError(
      f'config {spec!r}: get_config() returns a {type(c).__name__}; return '
      'what base_config() gives, with changes'
    )
  find_files(c, Path(path).parent)
  return c


def find_files(c: Any, folder: Path) -> None:
  """Makes the paths of one's own methods, models, ... absolute.

  Args:
    c: changed.
    folder: of the config file; they lie beside it, or in the current folder.
  """
  for key in OWN:
    group, _, name = key.rpartition('.')
    settings = c.get(group, {}) if group else c
    if isinstance(settings.get(name), str):
      settings[name] = absolute(settings[name], folder)
  c.eval.suite = tuple(
    absolute(spec, folder) if isinstance(spec, str) else spec
    for spec in c.eval.suite
  )


def in_words(error: Exception) -> str:
  """Returns what an error of a config says, in one line."""
  text: Any = str(error).strip()
  with contextlib.suppress(SyntaxError, ValueError):
    while text[:1] in ('"', "'"):  # a KeyError's is quoted, here more than once
      text = ast.literal_eval(text)
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  lines = lines or [repr(error)]
  if isinstance(error, (KeyError, AttributeError)) and ' ' not in lines[0]:
    key = lines[0].strip('"\'')
    near = f'; {lines[1]}' if lines[1:] else ''
    return f'there is no key {key!r}{near}'
  return ' '.join((lines[0], *lines[1:])[-2:])
