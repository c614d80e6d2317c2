"""Training recipes that several papers share, with all their numbers.

Each changes a config from `base_config` where it lies.
"""

from jax_robust_kd.config import Config
from jax_robust_kd.core import UserError


def feature_distillation(c: Config) -> None:
  """As the authors of CRD compare methods on CIFAR-100.

  A MobileNetV2 student takes optimizer.learning_rate=0.01. The attack counts
  only where a method is told to look at adversarial images.
  """
  c.data.batch_size = 64
  c.optimizer.update(epochs=240, schedule='step', decay=0.1)
  c.optimizer.update(milestones=(150 / 240, 180 / 240, 210 / 240))
  c.optimizer.update(learning_rate=0.05, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=5e-4, decay_on='all')
  c.train_attack.update(init='uniform')
  c.eval.checkpoint = 'last'  # as reported


def adaptive_distillation(c: Config) -> None:
  """As AdaIAD, IGDM, SAAD and DGAD, which start from AdaAD, on CIFAR."""
  c.data.batch_size = 128
  c.train_attack.update(epsilon='8/255', step_size='2/255', num_steps=10)
  c.train_attack.update(init='gaussian', bn='eval')
  c.optimizer.update(epochs=200, schedule='step', milestones=(0.5, 0.75))
  c.optimizer.update(learning_rate=0.1, momentum=0.9, nesterov=False)
  c.optimizer.update(weight_decay=5e-4, decay_on='all')


def augment(c: Config, names: str, known: dict[str, dict]) -> None:
  """Adds augmentations, named as 'cutout+cutmix', to the config's own.

  Args:
    c: changed.
    names: keys of `known`, joined by +.
    known: name -> keys of data.augment.

  Raises:
    UserError: an unknown name.
  """
  for name in names.split('+'):
    if name not in known:
      raise UserError(
        f'augmentation {name!r} in the name of the config is unknown; join any '
        f'of {sorted(known)} by +'
      )
    c.data.augment.update(known[name])
