r"""FunMatch: match the teacher on mixed views for long; no label, no attack.

python -m jax_robust_kd.main --config configs/funmatch.py:cifar10 \
  --workdir runs/funmatch
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # The paper has no CIFAR. Of its data sets Food-101 is of nearest size: these
  # are the official numbers for it, at the middle one of three lengths.
  c.method = dict(name='funmatch', temperature=10.0)
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.data.augment.mixup_alpha = 1.0
  if dataset != 'digits':
    c.data.augment.update(crop_pad=0, resized_crop=0.05, flip=True)
    c.data.batch_size = 512
    # Decay there is 3e-4 per step at the peak, not times the learning rate.
    c.optimizer.update(
      name='adamw', learning_rate=1e-3, weight_decay=3e-4 / 1e-3, clip_norm=1.0
    )
    # 1,500 steps of warm-up.
    c.optimizer.update(schedule='cosine', warmup_epochs=15.0, epochs=1000)
  return c
