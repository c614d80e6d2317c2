r"""PGD adversarial training of the student alone, no teacher.

python -m jax_robust_kd.main --config configs/pgd_at.py:cifar10 \
  --workdir runs/pgd_at
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='pgd_at')
  c.attack.init = 'uniform'
  return c
