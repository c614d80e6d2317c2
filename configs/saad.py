r"""SAAD: AdaAD and IGDM, weighted by the teacher's entropy, and SWA.

python -m jax_robust_kd.main --config configs/saad.py:cifar10 \
  --workdir runs/saad
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(
    name='saad', alpha=10.0 if dataset == 'cifar100' else 1.0, beta=0.0,
    entropy_scale=5.0, order=1.0, correction=1.0, corrected='label',
  )  # fmt: skip
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.optimizer.swa_start = 95 / 200
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  c.attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.attack.update(init='gaussian', bn='eval')
  c.optimizer.update(epochs=200, schedule='step', milestones=(0.5, 0.75))
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  # The paper's; 2e-4 is fixed in the official code.
  c.optimizer.update(weight_decay=5e-4, decay_on='all')
  return c
