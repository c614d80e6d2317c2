"""Loads what a config names as 'package.module:name'."""

import importlib
import inspect
from pathlib import Path
from typing import Any

from jax_robust_kd.core import UserError


def load_object(field: str, spec: str) -> Any:
  """Returns an object of an importable module.

  Args:
    field: the setting that names it, for the message.
    spec: 'package.module:name'.

  Raises:
    UserError: there is no such module, it cannot be imported, or it has no
      such name.
  """
  module_name, _, name = spec.partition(':')
  try:
    module = importlib.import_module(module_name)
  except Exception as error:
    raise UserError(
      f'{field}={spec!r}: module {module_name!r} cannot be imported '
      f'({type(error).__name__}: {error}); give its folder in PYTHONPATH'
    ) from error
  if not hasattr(module, name):
    raise UserError(
      f'{field}={spec!r}: module {module_name!r} has no {name!r}; write '
      'package.module:name'
    )
  return getattr(module, name)


def source_of(value: Any) -> str:
  """Returns the source of the module that defines a function, '' if unknown."""
  module = inspect.getmodule(value)
  path = getattr(module, '__file__', None)
  return Path(path).read_text('utf-8') if path else ''
