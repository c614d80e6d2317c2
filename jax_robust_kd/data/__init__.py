"""Data sets, batches of them, and augmentation on the device."""

from jax_robust_kd.data.augment import make_augment, to_float
from jax_robust_kd.data.batches import (
  check_divides,
  epoch_order,
  num_batches,
  train_batches,
)
from jax_robust_kd.data.extra import Extra, load_extra
from jax_robust_kd.data.lazy import Reading
from jax_robust_kd.data.source import (
  DATASETS,
  Dataset,
  DatasetInfo,
  find_test,
  load,
)
from jax_robust_kd.data.split import Split

__all__ = [
  'DATASETS',
  'Dataset',
  'DatasetInfo',
  'Extra',
  'Reading',
  'Split',
  'check_divides',
  'epoch_order',
  'find_test',
  'load',
  'load_extra',
  'make_augment',
  'num_batches',
  'to_float',
  'train_batches',
]
