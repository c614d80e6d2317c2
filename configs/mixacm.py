r"""MixACM: channel maps and soft labels on mixed images, no attack.

python -m jax_robust_kd.main --config configs/mixacm.py:cifar10 \
  --workdir runs/mixacm

All numbers are RECONSTRUCTED. Of the components, --config.method.alpha_acm=0,
--config.method.alpha_kl=0 and --config.data.augment.mixup_alpha=0 switch one
off each.
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # WRN-34-10 has three stages, ResNet-18 a fourth, which is left out.
  c.method = dict(
    name='mixacm', alpha_acm=5.0, alpha_kl=1.0, alpha_ce=1.0, temperature=4.0,
    p=1, distance='norm', blocks=('stem', 'stage1', 'stage2', 'stage3'),
  )  # fmt: skip
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.data.augment.mixup_alpha = 1.0
  if dataset != 'digits':
    c.data.batch_size = 128
    c.optimizer.update(learning_rate=0.1, weight_decay=5e-4, epochs=200)
    c.optimizer.schedule = 'cosine'
  return c
