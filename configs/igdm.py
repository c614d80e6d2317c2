r"""IGDM: a host method, with gradients by the image matched as well.

python -m jax_robust_kd.main --config configs/igdm.py:cifar10 \
  --workdir runs/igdm
"""

from jax_robust_kd import recipes
from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # Of the paper for AdaAD, ResNet-18 and an LTD teacher.
  alpha = 15.0 if dataset == 'cifar100' else 5.0
  c.method = dict(name='igdm', host='adaad', alpha=alpha)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  recipes.adaptive_distillation(c)
  return c
