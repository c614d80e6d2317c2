"""Our AutoAttack against the program itself; run by hand.

AUTOATTACK_REFERENCE   a checkout of github.com/fra31/auto-attack at a392200
AUTOATTACK_NETWORKS    what `python -m benchmarks.autoattack_networks` wrote
TORCH_PYTHON           a Python with PyTorch
"""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import autoattack

NEEDED = ('AUTOATTACK_REFERENCE', 'AUTOATTACK_NETWORKS', 'TORCH_PYTHON')


@pytest.mark.torch
@pytest.mark.parametrize(
  'row', autoattack.ROWS, ids=lambda row: f'{row[0]}-{row[1]}'
)
def test_the_reference_gives_the_same_flags(row):
  missing = [name for name in NEEDED if not os.environ.get(name)]
  if missing:
    pytest.skip(f'set {", ".join(missing)}')
  reference, networks, python = (os.environ[name] for name in NEEDED)
  args = SimpleNamespace(
    folder=Path(networks),
    reference=Path(reference),
    torch=python,
    once=True,
  )
  if not (args.folder / f'{row[0]}.npz').exists():
    pytest.skip(f'there is no {row[0]}.npz in AUTOATTACK_NETWORKS')
  found = autoattack.compare(row, args, set(os.sched_getaffinity(0)))
  ours, theirs = (found[side] for side in ('ours', 'reference'))
  np.testing.assert_array_equal(ours['clean'], theirs['clean'])
  if row[1] == 'l1':  # two correct programs differ there: accuracy alone counts
    robust = [np.mean(side['robust']) for side in (ours, theirs)]
    assert abs(robust[0] - robust[1]) <= 0.03
  else:  # a random start is not a difference of the programs
    assert len(found['unexplained']) <= len(ours['robust']) / 200
    assert len(found['differ']) <= len(ours['robust']) / 50
