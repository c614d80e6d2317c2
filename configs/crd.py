r"""CRD: contrast both networks with banks of their past features.

python -m jax_robust_kd.main --config configs/crd.py:cifar100 \
  --workdir runs/crd

As run by the authors of CRD on CIFAR-100, there with accurate teachers; a
MobileNetV2 student takes optimizer.learning_rate=0.01. Robust features:
--config.method.on=adv
"""

from jax_robust_kd import recipes
from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='crd', beta=0.8, tau=0.07, negatives=16384)
  c.method.update(momentum=0.5, feature_dim=128)
  c.method.update(gamma=1.0, alpha=0.0, temperature=4.0, on='clean')
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  recipes.feature_distillation(c)
  return c
