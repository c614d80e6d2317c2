r"""Standard training: the reference for clean accuracy.

python -m jax_robust_kd.main --config configs/natural.py:cifar10 \
  --workdir runs/natural
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='natural')
  return c
