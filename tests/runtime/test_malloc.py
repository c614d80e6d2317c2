"""Freed memory stays in the process."""

import subprocess
import sys
import types

import pytest

from jax_robust_kd.runtime import malloc

# Page faults of writing 64 MB a second time, in a process of its own: the
# setting is for good.
PROGRAM = """
import ctypes, resource, sys
from jax_robust_kd.runtime.malloc import keep_freed_memory
if sys.argv[1] == 'keep' and not keep_freed_memory():
  sys.exit('no GNU C library')
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 64 * 2**20
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  piece = libc.malloc(size)
  libc.memset(piece, 1, size)
  libc.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
  pytest.importorskip('resource')  # not on Windows
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, how], capture_output=True, text=True
  )
  if 'no GNU C library' in done.stderr:
    pytest.skip('this system has another C library')
  return int(done.stdout)


def test_memory_is_not_fetched_twice():
  assert faults('keep') < 100
  assert faults('leave') > 500


@pytest.mark.parametrize('error', [AttributeError, OSError, TypeError])
def test_another_c_library_is_no_error(monkeypatch, error):
  """musl and macOS have no mallopt; Windows has no library of that name."""

  def fail(name):
    raise error

  monkeypatch.setattr(malloc.ctypes, 'CDLL', fail)
  assert not malloc.keep_freed_memory()


def test_a_refused_setting_is_told(monkeypatch):
  """One of the three settings fails."""
  library = types.SimpleNamespace(mallopt=lambda name, value: name != -8)
  monkeypatch.setattr(malloc.ctypes, 'CDLL', lambda name: library)
  assert not malloc.keep_freed_memory()
