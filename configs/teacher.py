r"""A robust teacher, trained by TRADES: WRN-34-10, or small on digits.

python -m jax_robust_kd.main --config configs/teacher.py:cifar10 \
  --workdir runs/teacher

Its schedule is the base's; that of the paper is in `trades.py`.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='trades', beta=6.0)
  if dataset == 'digits':
    c.student = dict(name='small_resnet', depth=8, width=24)
  else:
    c.student = dict(name='wide_resnet', depth=34, width=10)
  return c
