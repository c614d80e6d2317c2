"""Loads what a config names as 'package.module:name' or 'FILE.py:name'."""

from functools import partial
import hashlib
import importlib
import importlib.util
import inspect
import os
from pathlib import Path
import re
import sys
from types import ModuleType
from typing import Any

from jax_robust_kd.core import UserError

_OBJECT = re.compile(r'(?!npz:)(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*')


def names_object(spec: str) -> bool:
  """Returns whether a setting names an object, and no entry of a table."""
  return bool(_OBJECT.fullmatch(spec))


def short(spec: str) -> str:
  """Returns what an object is called in tables and folders: its own name."""
  return spec.rpartition(':')[2] if names_object(spec) else spec


def absolute(spec: str, folder: str | Path) -> str:
  """Returns 'FILE.py:name' with the absolute path of the file.

  Args:
    spec: a setting; another kind of it is returned as it is.
    folder: where to look first, before the current one.
  """
  file, _, name = spec.rpartition(':')
  if file.endswith('.py'):
    for place in (Path(folder, file), Path(file)):
      if place.is_file():
        return f'{os.path.abspath(place)}:{name}'
  return spec


def load_object(field: str, spec: str) -> Any:
  """Returns an object of a module or of a file.

  Args:
    field: the setting that names it, for the message.
    spec: 'package.module:name' or 'FILE.py:name'.

  Raises:
    UserError: there is no such module or file, it cannot be imported, or it has
      no such name.
  """
  source, _, name = spec.rpartition(':')
  of_file = source.endswith('.py')
  if of_file and not Path(source).is_file():
    raise UserError(
      f'{field}={spec!r}: there is no file {source}; put it beside the config, '
      'or give its absolute path'
    )
  try:
    module = _load(source) if of_file else importlib.import_module(source)
  except Exception as error:
    remedy = 'mend it' if of_file else 'give its folder in PYTHONPATH'
    raise UserError(
      f'{field}={spec!r}: module {source!r} cannot be imported '
      f'({type(error).__name__}: {error}); {remedy}'
    ) from error
  if not hasattr(module, name):
    form = 'FILE.py:name' if of_file else 'package.module:name'
    raise UserError(
      f'{field}={spec!r}: module {source!r} has no {name!r}; write {form}'
    )
  return getattr(module, name)


def _load(file: str) -> ModuleType:
  """Imports a file, once."""
  path = os.path.abspath(file)
  digest = hashlib.sha256(path.encode()).hexdigest()
  name = f'{Path(path).stem}_{digest[:16]}'
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  return module


def source_of(value: Any) -> str:
  """Returns the source of the module that defines a function or a class.

  It is '' where that is not known. What a `functools.partial` fills in is part
  of it.
  """
  if isinstance(value, partial):
    return f'{source_of(value.func)} {value.args} {value.keywords}'
  module = inspect.getmodule(value)
  path = getattr(module, '__file__', None)
  return Path(path).read_text('utf-8') if path else ''
