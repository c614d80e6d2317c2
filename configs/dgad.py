r"""DGAD: AdaAD where the teacher is right, its corrected label elsewhere.

python -m jax_robust_kd.main --config configs/dgad.py:cifar10 \
  --workdir runs/dgad
"""

from jax_robust_kd import recipes
from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # The official weight is 1 on squares averaged over the classes.
  beta = 1 / 100 if dataset == 'cifar100' else 1 / 10
  c.method = dict(name='dgad', beta=beta)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  recipes.adaptive_distillation(c)
  return c
