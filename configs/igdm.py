r"""IGDM: a host method, with gradients by the image matched as well.

python -m jax_robust_kd.main --config configs/igdm.py:cifar10 \
  --workdir runs/igdm
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # Of the paper for AdaAD, ResNet-18 and an LTD teacher.
  alpha = 15.0 if dataset == 'cifar100' else 5.0
  c.method = dict(name='igdm', host='adaad', alpha=alpha)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  c.attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.attack.update(init='gaussian', bn='eval')
  c.optimizer.update(epochs=200, schedule='step', milestones=(0.5, 0.75))
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=5e-4, decay_on='all')
  return c
