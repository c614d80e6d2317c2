"""Accuracy on corrupted images, CIFAR-10-C style (Hendrycks and Dietterich
2019): 15 corruptions in 5 severities, of which RobustBench takes the mean.
"""

from collections.abc import Callable

import numpy as np

from jax_robust_kd import data, networks
from jax_robust_kd.config import Config
from jax_robust_kd.core import UserError
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.threat import make_budget

# As TFDS calls them.
KINDS = (
  'brightness', 'contrast', 'defocus_blur', 'elastic', 'fog', 'frost',
  'frosted_glass_blur', 'gaussian_noise', 'impulse_noise', 'jpeg_compression',
  'motion_blur', 'pixelate', 'shot_noise', 'snow', 'zoom_blur',
)  # fmt: skip
ALL = tuple(f'{kind}_{severity}' for kind in KINDS for severity in range(1, 6))


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
  """Returns 'fog_3' and the like; ('all',) is all 75.

  Raises:
    UserError: an unknown name.
  """
  if tuple(names) == ('all',):
    return ALL
  for name in names:
    if name not in ALL:
      raise UserError(
        f"eval.corruptions={name!r} is unknown; use ('all',), or a kind and a "
        f'severity of 1 to 5 such as fog_3; kinds: {", ".join(KINDS)}'
      )
  return tuple(names)


def measure(
  c: Config, network: networks.Network, say: Callable[[str], None]
) -> dict[str, float]:
  """Returns the accuracy in percent on each corrupted test set of a config.

  The sets are those of TFDS, `<data.name>_corrupted/fog_3`.

  Raises:
    UserError: an unknown corruption, or a set that cannot be read.
  """
  accuracy = {}
  forward = networks.in_precision(network, 'float32')
  attack = evaluate.make_split_attack(
    forward, 'clean', make_budget(c), c.seed, c.eval.batch_size
  )
  for name in chosen(c.eval.corruptions):
    test = data.find_test(f'{c.data.name}_corrupted/{name}', c.data.data_dir)
    count = c.eval.num_examples or len(test.label)
    part = data.Split(test.image[:count], test.label[:count])
    correct = attack(network.variables, part).margin < 0
    accuracy[name] = 100 * float(np.mean(correct))
    say(f'{name} {accuracy[name]:.1f} %')
  return accuracy
