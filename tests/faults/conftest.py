"""Runs that nobody killed, which the others are held against."""

from helpers.runs import make_reference
import pytest


@pytest.fixture(scope='session')
def reference(tmp_path_factory):
  return make_reference(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='session')
def quick_reference(tmp_path_factory):
  """Compiled in a third of the time."""
  folder = tmp_path_factory.mktemp('quick')
  return make_reference(folder, JAX_DISABLE_MOST_OPTIMIZATIONS='1')
