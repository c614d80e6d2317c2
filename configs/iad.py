r"""IAD-I: trust a robust teacher where it is right on the attacked image.

python -m jax_robust_kd.main --config configs/iad.py:cifar10 \
  --workdir runs/iad

IAD-II: method.version=II, robust_weight 0.5, clean_weight 0.25, begin 0.2 and
weigh_teacher True, with the clean teacher as well.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(
    name='iad', version='I', robust_weight=1.0, clean_weight=0.0, beta=0.1,
    begin=60 / 200, temperature=1.0, weigh_teacher=False,
  )  # fmt: skip
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.clean_teacher.config = f'configs/clean_teacher.py:{dataset}'  # of II
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  c.attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.attack.update(init='uniform', bn='batch')
  c.optimizer.update(epochs=200, schedule='step', milestones=(0.5, 0.75))
  # The second milestone of the official code does nothing.
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=2e-4, decay_on='all')
  return c
