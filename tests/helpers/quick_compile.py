"""Settings of XLA with which a test compiles in a third of the time.

Set before JAX starts; processes that a test starts inherit them.
"""

from collections.abc import Iterator
from importlib.util import find_spec
import mmap
import os
from pathlib import Path

# The older way to make code for a CPU, in one piece: a step takes 1.2 s of CPU
# to compile instead of 4.0, and 680 memory maps instead of 1,430.
FLAGS = {
  'xla_cpu_use_fusion_emitters': 'false',
  'xla_cpu_parallel_codegen_split_count': '1',
}


def known_flags() -> Iterator[str]:
  """Yields those of FLAGS that this XLA has: one that it lacks would end it."""
  spec = find_spec('jaxlib')
  assert spec is not None and spec.submodule_search_locations
  for path in Path(spec.submodule_search_locations[0]).glob('libjax*.so'):
    with (
      path.open('rb') as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
      yield from (f for f in FLAGS if library.find(f.encode()) >= 0)


def flags() -> str:
  """Returns XLA_FLAGS with those flags, where it does not name them already."""
  given = os.environ.get('XLA_FLAGS', '')
  words = [given] if given else []
  words += [f'--{f}={FLAGS[f]}' for f in known_flags() if f not in given]
  return ' '.join(words)
