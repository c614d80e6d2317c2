r"""DARWIN: match the teacher along two adversarial paths. All RECONSTRUCTED.

python -m jax_robust_kd.main --config configs/darwin.py:cifar10 \
  --workdir runs/darwin

--config.method.num_points=3 takes 43 % of the operations.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(
    name='darwin', weights='drop', a=1 / 6, b=0.5, target='uniform',
    teacher_sees='adv', num_points=0, tau=0.2,
  )  # fmt: skip
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.train_attack.update(init='gaussian', bn='eval')
  if dataset != 'digits':
    c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
    c.data.batch_size = 128
    c.optimizer.update(
      learning_rate=0.1, nesterov=False, weight_decay=5e-4, decay_on='all'
    )
    c.optimizer.update(schedule='step', milestones=(0.5, 0.75), epochs=200)
  return c
