r"""RSLAD: the teacher's clean outputs as robust soft labels.

python -m jax_robust_kd.main --config configs/rslad.py:cifar10 \
  --workdir runs/rslad
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='rslad', alpha=5 / 6)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  return c
