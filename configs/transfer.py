r"""A linear probe of the frozen features of a finished run, on any data set.

jax-robust-kd transfer --features runs/gacd \
  --config configs/transfer.py:stl10 --workdir runs/gacd_stl10

--config.eval.checkpoint=last takes the last features, not the best: needed
where the run trained no classifier (GACD's method.classifier=none).
"""

from jax_robust_kd.config import base_config


def get_config(dataset='stl10'):
  c = base_config(dataset)
  c.method = dict(name='natural')
  c.data.augment.update(crop_pad=0, flip=False)  # images as they are
  c.optimizer.update(
    name='adamw',
    learning_rate=1e-3,
    weight_decay=1e-2,
    warmup_epochs=0.0,
    epochs=50,
  )
  c.eval.suite = ('pgd-20',)
  if dataset == 'digits':
    c.optimizer.learning_rate = 1e-2
  return c
