r"""RSLAD: the teacher's clean outputs as robust soft labels.

python -m jax_robust_kd.main --config configs/rslad.py:cifar10 \
  --workdir runs/rslad
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='rslad', alpha=5 / 6, scale=1.0)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  # The official code averages over 10 classes; over 100, times 10.
  c.method.update(scale=1 / 10)
  c.data.batch_size = 128
  c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.train_attack.update(init='gaussian', bn='eval')
  milestones = (215 / 300, 260 / 300, 285 / 300)
  c.optimizer.update(epochs=300, schedule='step', milestones=milestones)
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=2e-4, decay_on='all')
  return c
