r"""SAAD: AdaAD and IGDM, weighted by the teacher's entropy, and SWA.

python -m jax_robust_kd.main --config configs/saad.py:cifar10 \
  --workdir runs/saad
"""

from jax_robust_kd import recipes
from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(
    name='saad', alpha=10.0 if dataset == 'cifar100' else 1.0, beta=0.0,
    entropy_scale=5.0, order=1.0, correction=1.0, corrected='label',
  )  # fmt: skip
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.optimizer.swa_start = 95 / 200
  if dataset == 'digits':
    return c
  # Weight decay is 5e-4 in the paper, 2e-4 in the official code.
  recipes.adaptive_distillation(c)
  return c
