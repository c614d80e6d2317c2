r"""TRADES on the student alone, no teacher.

python -m jax_robust_kd.main --config configs/trades.py:cifar10 \
  --workdir runs/trades
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='trades', beta=6.0)
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  # The code's 0.031 and 0.007 stand for these.
  c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.train_attack.update(init='gaussian', bn='eval')
  # The code counts from 1: the rate drops for epochs 75 and 76, the last two.
  c.optimizer.update(epochs=76, schedule='step', milestones=(74 / 76,))
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=2e-4, decay_on='all')
  return c
