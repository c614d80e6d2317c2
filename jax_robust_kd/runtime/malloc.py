"""Keeps freed memory in the process, for the next step to use.

A compiled step on the CPU takes its buffers in one piece, hundreds of MB, and
frees them when it ends. The C library of Linux gives pieces of that size back
to the kernel at once and must fetch them again, page by page: with MobileNetV2
this was measured to cost more time than the step.
"""

import ctypes

# From malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Keeps what is freed from now on; the process stays at its peak size.

  Returns:
    Whether the C library knows how; if not, nothing has changed.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # not the GNU C library
    return False
  wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
  return all([mallopt(name, value) for name, value in wanted.items()])
