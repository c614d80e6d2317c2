r"""ARD, with the numbers of the official code.

python -m jax_robust_kd.main --config configs/ard.py:cifar10 \
  --workdir runs/ard
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # KLDivLoss() there averages over classes too.
  scale = 1 / 100 if dataset == 'cifar100' else 1 / 10
  c.method = dict(name='ard', alpha=1.0, temperature=30.0, scale=scale)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.train_attack.update(init='uniform', bn='batch')
  if dataset != 'digits':
    c.data.batch_size = 256 if dataset == 'cifar100' else 128
    c.optimizer.update(
      learning_rate=0.1, nesterov=False, weight_decay=2e-4, decay_on='all'
    )
    # Epochs 100 and 150; the code's second one changes nothing, by mistake:
    # here it does.
    c.optimizer.update(schedule='step', milestones=(0.5, 0.75), epochs=200)
  return c
