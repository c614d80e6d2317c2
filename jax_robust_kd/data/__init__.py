"""Data sets in memory, batches, and augmentation on the device."""

from jax_robust_kd.data.augment import make_augment, to_float
from jax_robust_kd.data.batches import (
  epoch_order,
  eval_batches,
  num_batches,
  train_batches,
)
from jax_robust_kd.data.source import DATASETS, Dataset, DatasetInfo, load
from jax_robust_kd.data.split import Split

__all__ = [
  'DATASETS',
  'Dataset',
  'DatasetInfo',
  'Split',
  'epoch_order',
  'eval_batches',
  'load',
  'make_augment',
  'num_batches',
  'to_float',
  'train_batches',
]
