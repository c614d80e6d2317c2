"""Settings: their defaults, files of them, and checks on what users write."""

from jax_robust_kd.config.checks import validate
from jax_robust_kd.config.defaults import (
  Config,
  base_config,
  is_trained_first,
  teacher_group,
)
from jax_robust_kd.config.names import (
  RENAMED,
  check_arguments,
  differing_keys,
  hint,
  refuse_old_name,
  upgrade,
)
from jax_robust_kd.config_files import load_config, locate, shipped

__all__ = [
  'RENAMED',
  'Config',
  'base_config',
  'check_arguments',
  'differing_keys',
  'hint',
  'is_trained_first',
  'load_config',
  'locate',
  'refuse_old_name',
  'shipped',
  'teacher_group',
  'upgrade',
  'validate',
]
