r"""MART on the student alone, no teacher; numbers of the paper's ResNet-18.

python -m jax_robust_kd.main --config configs/mart.py:cifar10 \
  --workdir runs/mart
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='mart', beta=5.0)
  c.train_attack.update(init='gaussian', bn='eval')
  if dataset != 'digits':
    # The code's 0.031 and 0.007 stand for these.
    c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
    c.data.batch_size = 128
    c.optimizer.update(
      learning_rate=0.01, nesterov=False, weight_decay=3.5e-3, decay_on='all'
    )
    steps = (75 / 120, 90 / 120, 100 / 120)
    c.optimizer.update(schedule='step', milestones=steps, epochs=120)
  return c
