"""The settings of a config.json: `--config saved_config.py:FILE`."""

from pathlib import Path

from ml_collections import ConfigDict

from jax_robust_kd.runtime.files import read_json


def get_config(file):
  """Returns a config with lists as the tuples that they were."""
  return ConfigDict(_with_tuples(read_json(Path(file))))


def _with_tuples(value):
  if isinstance(value, dict):
    return {key: _with_tuples(inner) for key, inner in value.items()}
  if isinstance(value, list):
    return tuple(map(_with_tuples, value))
  return value
