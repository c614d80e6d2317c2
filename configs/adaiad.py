r"""AdaIAD: AdaAD, trusting the teacher where it is right.

python -m jax_robust_kd.main --config configs/adaiad.py:cifar10 \
  --workdir runs/adaiad
"""

from jax_robust_kd import recipes
from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(
    name='adaiad', alpha=1.0, beta=0.1, begin=60 / 200, temperature=30.0,
    weigh_teacher=False, scale=1.0,
  )  # fmt: skip
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  recipes.adaptive_distillation(c)
  return c
