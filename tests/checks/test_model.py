"""Batches of one size."""

import numpy as np

from jax_robust_kd.checks.model import in_batches


def test_batches_of_one_size():
  sizes = []

  def twice(x):
    sizes.append(len(x))
    return {'a': 2 * x}

  x = np.arange(7.0)
  np.testing.assert_array_equal(in_batches(twice, 3, x)['a'], 2 * x)
  assert sizes == [3, 3, 3]
