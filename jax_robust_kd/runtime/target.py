"""The platform that is compiled for, where it is not the one at hand.

Convolutions are written by hand for CPUs. An export to a phone and a program
for a described TPU are traced on a CPU, but must hold plain convolutions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_target: ContextVar[str] = ContextVar('target', default='')


def platform() -> str:
  """Returns what is compiled for: 'cpu', 'gpu', 'tpu' or 'portable'."""
  return _target.get() or jax.default_backend()


@contextmanager
def compile_for(name: str) -> Iterator[None]:
  """Traces for another platform: 'gpu', 'tpu', or 'portable' for an export.

  What was traced before is not traced again; give `jax.jit` a new function.
  """
  token = _target.set(name)
  try:
    yield
  finally:
    _target.reset(token)
