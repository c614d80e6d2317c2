r"""AKD2: a robust and a clean teacher on adversarial images, and SWA.

python -m jax_robust_kd.main --config configs/akd2.py:cifar10 \
  --workdir runs/akd2
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # The authors' teachers have the student's architecture.
  c.method = dict(
    name='akd2', robust_weight=0.6, clean_weight=0.1, temperature=2.0
  )
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.clean_teacher.config = f'configs/clean_teacher.py:{dataset}'
  c.optimizer.swa_start = 55 / 200
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.train_attack.update(init='uniform', bn='batch')
  c.optimizer.update(epochs=200, schedule='step', milestones=(0.25, 0.75))
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=5e-4, decay_on='all')
  return c
