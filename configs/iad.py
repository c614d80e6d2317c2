r"""IAD: trust a teacher where it is right; `iad.py:cifar10,II` is version II.

python -m jax_robust_kd.main --config configs/iad.py:cifar10 \
  --workdir runs/iad
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  dataset, _, version = dataset.partition(',')
  c = base_config(dataset)
  c.method = dict(
    name='iad', version=version or 'I', robust_weight=1.0, clean_weight=0.0,
    beta=0.1, begin=60 / 200, temperature=1.0, weigh_teacher=False,
  )  # fmt: skip
  if version == 'II':
    c.method.update(robust_weight=0.5, clean_weight=0.25)
    c.method.update(begin=40 / 200, weigh_teacher=True)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.clean_teacher.config = f'configs/clean_teacher.py:{dataset}'  # of II
  if dataset != 'digits':
    c.data.batch_size = 128
    c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
    c.train_attack.update(init='uniform', bn='batch')
    c.optimizer.update(epochs=200, schedule='step', milestones=(0.5, 0.75))
    c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
    c.optimizer.update(weight_decay=2e-4, decay_on='all')
  return c
