r"""Knowledge distillation: the teacher's soft labels, no attack.

python -m jax_robust_kd.main --config configs/kd.py:cifar10 \
  --workdir runs/kd

The paper has no CIFAR; weight and temperature are the field's, and so is the
schedule, that of every config which sets none.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='kd', alpha=0.9, temperature=4.0)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  return c
