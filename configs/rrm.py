r"""RRM: match the robust teacher's pooled features on clean images.

python -m jax_robust_kd.main --config configs/rrm.py:cifar10 \
  --workdir runs/rrm

The paper's student is ResNet-50, its teachers VGG-11 and ResNet-18, attacked
in training; its learning rate ends at 1e-6, here at 0.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='rrm', beta=0.005)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  c.optimizer.update(epochs=48, schedule='cosine', learning_rate=0.1)
  c.optimizer.update(momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=5e-4, decay_on='all')
  return c
