r"""PGD adversarial training of the student alone, no teacher.

python -m jax_robust_kd.main --config configs/pgd_at.py:cifar10 \
  --workdir runs/pgd_at

The numbers are those of Rice et al. 2020, who found that robustness falls soon
after the first drop of the learning rate: `best` and `last` differ much here.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(name='pgd_at')
  c.train_attack.init = 'uniform'
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  c.train_attack.update(
    epsilon='8/255', step_size='2/255', num_steps=10, bn='eval'
  )
  c.optimizer.update(epochs=200, schedule='step', milestones=(0.5, 0.75))
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=5e-4, decay_on='all')
  return c
