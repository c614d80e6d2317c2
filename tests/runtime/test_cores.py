"""Cores are shared where the system can, and counted where it cannot."""

import os
import subprocess
import sys

import pytest

from jax_robust_kd.runtime import cores


@pytest.fixture
def nothing_known(monkeypatch):
  """As on macOS and Windows."""
  for name in ('sched_getaffinity', 'sched_setaffinity'):
    monkeypatch.delattr(os, name, raising=False)


def test_all_cores_are_counted_where_affinity_is_unknown(
  nothing_known, monkeypatch
):
  monkeypatch.setattr(os, 'cpu_count', lambda: 3)
  assert cores.available() == [0, 1, 2]
  monkeypatch.setattr(os, 'cpu_count', lambda: None)
  assert cores.available() == [0]


def test_nothing_is_restricted_where_affinity_is_unknown(nothing_known):
  assert not cores.restrict(os.getpid(), 0, 2)


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='the system cannot'
)
def test_shares_are_disjoint_and_whole(monkeypatch):
  kept = []
  monkeypatch.setattr(cores, 'available', lambda: [1, 4, 6])
  monkeypatch.setattr(os, 'sched_setaffinity', lambda *args: kept.append(args))
  for share in range(2):
    assert cores.restrict(7, share, 2)
  assert cores.restrict(7, 4, 5)  # more shares than cores: one each, again
  assert kept == [(7, [1, 6]), (7, [4]), (7, [4])]


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='the system cannot'
)
def test_a_process_that_has_ended_is_no_error():
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  assert cores.restrict(process.pid, 0, 1)
