"""Weights made from their PyTorch state_dict key, on either side alike.

Reference vectors made with RobustBench's architectures use this generator.
"""

import zlib

import numpy as np


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the tensor of `shape` (PyTorch layout) that belongs to `key`."""
  rng = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
  z = rng.standard_normal(shape).astype('float32')
  if key.endswith('running_mean'):
    return 0.1 * z
  if key.endswith('running_var'):
    return np.exp(0.1 * z)
  if len(shape) == 4:  # convolution, OIHW
    return (z * np.sqrt(2.0 / np.prod(shape[1:]))).astype('float32')
  if len(shape) == 2:  # linear, OI
    return (z * np.sqrt(1.0 / shape[1])).astype('float32')
  return (1 + 0.1 * z if key.endswith('weight') else 0.1 * z).astype('float32')
