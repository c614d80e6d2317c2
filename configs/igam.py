r"""IGAM: fool a discriminator of input gradients, at the end of the training.

The paper's teacher was trained on another data set than the student.

python -m jax_robust_kd.main --config configs/igam.py:cifar10 \
  --workdir runs/igam
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  gamma = 10 * 32 / 255**2  # 10, summed over 32 images, pixels 0 to 255
  layers = 3 if dataset == 'digits' else 5
  c.method = dict(
    name='igam', beta=2.0, gamma=gamma, begin=0.875, layers=layers, channels=16
  )
  c.teacher.config = f'configs/teacher.py:{dataset}'
  c.train_attack.update(
    init='uniform', num_steps=1
  )  # the start alone, no ascent
  if dataset != 'digits':
    c.data.batch_size = 32
    c.train_attack.epsilon = '8/255'  # of the noise
    # 320,000 steps, matching from 280,000 on.
    c.optimizer.update(epochs=205, learning_rate=0.1, momentum=0.9)
    c.optimizer.update(nesterov=False, weight_decay=2e-4, decay_on='kernels')
    c.optimizer.update(schedule='step', milestones=(0.5, 0.75), decay=0.1)
  return c
