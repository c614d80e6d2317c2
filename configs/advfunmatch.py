r"""AdvFunMatch: match the teacher where the two differ most, on strong views.

python -m jax_robust_kd.main --config configs/advfunmatch.py:cifar10 \
  --workdir runs/advfunmatch
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='advfunmatch', inner='mismatch', clean_weight=0.0)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    c.data.augment.cutout = 2
  else:
    c.data.augment.update(cutout=16, cutmix_alpha=1.0)
  return c
