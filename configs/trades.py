r"""TRADES on the student alone, no teacher.

python -m jax_robust_kd.main --config configs/trades.py:cifar10 \
  --workdir runs/trades
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='trades', beta=6.0)
  return c
