r"""KDIGA: the teacher's outputs and input gradients, no attack.

The weights and the recipe are the field's usual ones, not the paper's.

python -m jax_robust_kd.main --config configs/kdiga.py:cifar10 \
  --workdir runs/kdiga
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  c.method = dict(
    name='kdiga',
    kl_weight=1.0,
    gradient_weight=1.0,
    temperature=1.0,
    adversarial=False,
  )
  c.teacher.config = f'configs/teacher.py:{dataset}'
  if dataset != 'digits':
    c.data.batch_size = 128
    c.optimizer.update(epochs=200, learning_rate=0.1, weight_decay=5e-4)
    c.optimizer.update(schedule='step', milestones=(0.5, 0.75), decay=0.1)
  return c
