r"""An accurate teacher without robustness, for methods that ask two.

python -m jax_robust_kd.main --config configs/clean_teacher.py:cifar10 \
  --workdir runs/clean_teacher
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='natural')
  if dataset == 'digits':
    c.student = dict(name='small_resnet', depth=8, width=24)
  else:
    c.student = dict(name='wide_resnet', depth=34, width=10)
  return c
