"""AutoAttack for whoever has a network and nothing else of this package."""

from collections.abc import Callable

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.attacks.ascent import check_norm
from jax_robust_kd.attacks.batching import make_runner
from jax_robust_kd.attacks.engine import Images, Result, run_jobs
from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.packing import Victim
from jax_robust_kd.attacks.suites import plan
from jax_robust_kd.core import LogitsFn, Progress, UserError
from jax_robust_kd.runtime import parallel


def autoattack(
  apply: LogitsFn,
  image: np.ndarray,
  label: np.ndarray,
  *,
  epsilon: float,
  norm: str = 'linf',
  suite: tuple[str, ...] = ('autoattack',),
  seed: int = 0,
  batch_size: int = 100,
  show: Callable[[str], None] = print,
) -> Result:
  """Attacks any network: logits from images, nothing else of this package.

  Args:
    apply: image [B, H, W, C] float32 in [0, 1] -> logits [B, K], pure and
      traceable, in evaluation mode. For large weights give
      `jax.tree_util.Partial(function, weights)`: they are then arguments of
      the compiled programs instead of constants in them, and later calls with
      the same function and shapes compile nothing. For 'autoattack_rand' it
      takes one key per image [B] as last argument.
    image: [N, H, W, C] float in [0, 1].
    label: [N] integers.
    epsilon: radius in pixel range 0-1.
    norm: 'linf', 'l2' or 'l1'.
    suite: names of SUITES, or attacks such as 'apgd_ce', 'pgd-20x5'.
    seed: of all draws.
    batch_size: images of a call, over all devices of this process.
    show: told what comes out, such as `print`.

  Returns:
    Flags, margins and adversarial images of every attack; 'robust' is the
    worst case.

  Raises:
    UserError: images that are not floats in [0, 1], labels that do not fit,
      probabilities for logits, logits or gradients that are not finite, one
      class, a radius of 0 or less, an unknown norm or attack, no attack.
  """
  check_norm(norm, ('linf', 'l2', 'l1'))
  if not suite:
    raise UserError("suite=() attacks nothing; use ('autoattack',)")
  image, label = check_images(image, label)
  jobs = plan(suite, Budget(norm, epsilon, step_size=epsilon / 4))
  network = _on_all_devices(apply)
  noisy = jobs[0].budget.num_eot > 1
  check_logits(network, image[:batch_size], label, noisy)
  return run_jobs(
    jobs,
    Victim(network, network),
    Images(lambda index: image[index], label),
    seed,
    make_runner(batch_size, len(label), image.shape[1:], Progress(show)),
  )


def _on_all_devices(apply: Callable) -> Partial:
  network = apply if isinstance(apply, Partial) else Partial(apply)
  if parallel.num_devices() == 1:
    return network
  return parallel.replicate(network, jax.local_devices())


def check_images(
  image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns float32 images and int32 labels.

  Raises:
    UserError: they are not [N, H, W, C] floats in [0, 1] and [N] labels.
  """
  image, label = np.asarray(image), np.asarray(label)
  if image.ndim != 4 or label.shape != image.shape[:1] or not len(label):
    raise UserError(
      f'image has shape {image.shape} and label {label.shape}; give [N, H, W, '
      'C] images and one label for each'
    )
  if not np.issubdtype(image.dtype, np.floating):
    raise UserError(
      f'image is {image.dtype}; give floats in [0, 1], for 8-bit images '
      'image / 255'
    )
  if not (image.min() >= 0 and image.max() <= 1):
    raise UserError(
      f'image ranges over [{image.min():g}, {image.max():g}]; give [0, 1] and '
      'let the network normalize inside'
    )
  return image.astype(np.float32), label.astype(np.int32)


@jax.jit
def _call(apply: Partial, *args) -> jax.Array:
  return apply(*args)


def check_logits(
  apply: Partial, image: np.ndarray, label: np.ndarray, noisy: bool = False
) -> None:
  """Refuses what cannot be attacked.

  Raises:
    UserError: one class, a label out of range, NaN, or probabilities.
  """
  keys = jax.random.split(jax.random.key(0), len(image))
  logits = np.asarray(_call(apply, image, *([keys] if noisy else [])))
  if logits.ndim != 2 or logits.shape[1] < 2:
    raise UserError(
      f'apply returns {logits.shape} for {len(image)} images; it must return '
      'one row of logits each, of at least 2 classes'
    )
  if label.min() < 0 or label.max() >= logits.shape[1]:
    raise UserError(
      f'label ranges over [{label.min()}, {label.max()}]; the network has '
      f'classes 0 to {logits.shape[1] - 1}'
    )
  if not np.all(np.isfinite(logits)):
    raise UserError('apply returns logits that are not finite; mend it first')
  sums = logits.sum(axis=1)
  if logits.min() >= 0 and np.allclose(sums, 1, atol=1e-3):
    raise UserError(
      'apply returns probabilities (each row sums to 1); return the logits, '
      'from before the softmax'
    )
