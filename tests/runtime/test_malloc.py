"""Freed memory stays in the process."""

import subprocess
import sys

import pytest

# Page faults of writing 64 MB a second time, in a process of its own: the
# setting is for good.
PROGRAM = """
import ctypes, resource, sys
from jax_robust_kd.memory import keep_freed_memory
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
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, how], capture_output=True, text=True
  )
  if 'no GNU C library' in done.stderr:
    pytest.skip('this system has another C library')
  return int(done.stdout)


def test_memory_is_not_fetched_twice():
  assert faults('keep') < 100
  assert faults('leave') > 500
