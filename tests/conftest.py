"""Shared by all tests: two virtual CPU devices, small networks and data."""

import gc
import os

from helpers import quick_compile

# Before JAX starts: the tests run on two devices and nothing but the CPU.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '2')
# Compiling is most of the time here: 9.8 s of CPU against 2.9 s for one step.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ['XLA_FLAGS'] = quick_compile.flags()

from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from jax_robust_kd import data
from jax_robust_kd.attacks import batching

# Files that take longest; begun first, so that all workers end together.
LONGEST = (
  'test_method_contract',
  'test_resume',
  'test_stream',
  'test_processes',
  'test_autoattack',
  'test_field_bugs',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  places = {name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope='module', autouse=True)
def own_programs():
  """Frees what a module's tests compiled, in memory and on disk."""
  yield
  forget_programs()
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def few_maps():
  """Frees programs before there are too many.

  A step on a CPU is up to a thousand memory maps of its process, of which Linux
  allows 65,530. Where it has no more JAX crashes.
  """
  yield
  maps = Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 20_000:
    forget_programs()


def forget_programs():
  batching.forget_programs()
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='session')
def digits():
  """The embedded digits."""
  return data.load('digits')
