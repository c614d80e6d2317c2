r"""MTARD: a robust teacher on attacked, a clean one on clean images.

python -m jax_robust_kd.main --config configs/mtard.py:cifar10 \
  --workdir runs/mtard
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  milestones = (215 / 300, 260 / 300, 285 / 300)
  c.method = dict(
    name='mtard', weight_lr=0.025, milestones=milestones, decay=0.1, scale=1.0
  )
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.clean_teacher.config = f'configs/clean_teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  # The official code averages over 10 classes; over 100, times 10.
  c.method.update(scale=0.1)
  c.data.batch_size = 128
  c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.train_attack.update(init='gaussian', bn='eval')
  c.optimizer.update(epochs=300, schedule='step', milestones=milestones)
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=2e-4, decay_on='all')
  return c
