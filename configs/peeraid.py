r"""PeerAiD: a peer learns on the student's adversarial images, and teaches it.

python -m jax_robust_kd.main --config configs/peeraid.py:cifar10 \
  --workdir runs/peeraid
"""

from jax_robust_kd.config import base_config


def get_config(dataset='cifar10'):
  c = base_config(dataset)
  # The official code averages divergences over the classes.
  k = 100 if dataset == 'cifar100' else 10
  g2 = 1.0 if dataset == 'cifar100' else 0.1
  c.method = dict(
    name='peeraid', label=0.0, peer=1 / k, clean=1 / k, temperature=5.0,
    peer_label=1.0, peer_student=g2 / k,
  )  # fmt: skip
  if dataset != 'digits':
    c.data.batch_size = 128
    c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
    c.train_attack.update(init='gaussian', bn='eval')
    c.optimizer.update(epochs=300, learning_rate=0.1, momentum=0.9)
    c.optimizer.update(nesterov=False, weight_decay=2e-4, decay_on='all')
    c.optimizer.update(schedule='step', decay=0.1)
    c.optimizer.milestones = (214 / 300, 259 / 300, 284 / 300)
    c.optimizer.swa_start = 215 / 300  # one epoch after the first decay
  return c
