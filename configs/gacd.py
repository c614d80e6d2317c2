r"""GACD: the teacher's robust features as anchors of a contrast.

python -m jax_robust_kd.main --config configs/gacd.py:cifar10 \
  --workdir runs/gacd

RECONSTRUCTED: numbers of CRD and of the field, none of the paper. Features
alone: --config.method.classifier=none --config.eval.checkpoint=last, the latter
for configs/transfer.py too.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(
    name='gacd', views='V1', loss='nce', weight='probability', power=1.0,
    negatives='batch', bank_size=16384, direction='teacher',
    classifier='joint', tau=0.07, beta=0.8, feature_dim=128,
  )  # fmt: skip
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset == 'digits':
    return c
  c.data.batch_size = 128
  c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.train_attack.update(init='uniform', bn='eval')
  c.optimizer.update(epochs=200, schedule='step', milestones=(0.5, 0.75))
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=2e-4, decay_on='all')
  return c
