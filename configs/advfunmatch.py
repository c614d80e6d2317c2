r"""AdvFunMatch: match the teacher where the two differ most, on strong views.

python -m jax_robust_kd.main --config configs/advfunmatch.py:cifar10 \
  --workdir runs/advfunmatch

Other ARMS beside crop and flip: `advfunmatch.py:cifar10,autoaugment+cutmix`.
Twice the radius in training: --config.train_attack.epsilon=16/255
--config.train_attack.step_size=4/255 --config.eval.threat=linf_8_255
Schedule, start of the attack and BatchNorm in it are the base's, RECONSTRUCTED.
"""

from jax_robust_kd import recipes
from jax_robust_kd.config import base_config

ARMS = dict(plain={}, cutout={'cutout': 16}, cutmix={'cutmix_alpha': 1.0})
ARMS.update(mixup={'mixup_alpha': 1.0}, randaugment={'policy': 'randaugment'})
ARMS['autoaugment'] = {'policy': 'autoaugment_cifar10'}


def get_config(dataset='cifar10'):
  dataset, _, arms = dataset.partition(',')
  c = base_config(dataset)
  c.method = dict(inner='kl_to_teacher_adv', clean_weight=0.0, teaching='same')
  c.method.update(name='advfunmatch')
  c.teacher.config = f'configs/teacher.py:{dataset}'
  default = 'cutout' if dataset == 'digits' else 'autoaugment'
  recipes.augment(c, arms or default, ARMS)
  if dataset == 'digits' and c.data.augment.cutout:
    c.data.augment.cutout = 2
  return c
