"""AutoAttack for whoever has a network and nothing else of this package."""

from collections.abc import Callable
from typing import Any

from flax.errors import FlaxError
import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.attacks.ascent import check_norm
from jax_robust_kd.attacks.batching import make_runner
from jax_robust_kd.attacks.engine import Images, Result, run_jobs
from jax_robust_kd.attacks.gradient import Budget, read_epsilon
from jax_robust_kd.attacks.packing import Victim
from jax_robust_kd.attacks.suites import plan
from jax_robust_kd.core import LogitsFn, Progress, UserError
from jax_robust_kd.runtime import parallel

# How Flax says that a model changes its own state.
_IN_TRAINING = ('TraceContextError', 'ModifyScopeVariableError')


def autoattack(
  model: LogitsFn,
  images: np.ndarray,
  labels: np.ndarray,
  *,
  epsilon: float | str,
  norm: str = 'linf',
  suite: str | tuple[str, ...] = 'autoattack',
  seed: int = 0,
  batch_size: int = 100,
  show: Callable[[str], None] = print,
) -> Result:
  """Attacks any network: logits from images, nothing else of this package.

  Args:
    model: image [B, H, W, C] float32 in [0, 1] -> logits [B, K], pure and
      traceable, in evaluation mode; or a model with `as_partial()`, as
      `jax_robust_kd.load` returns it. For large weights give
      `jax.tree_util.Partial(function, weights)`: they are then arguments of
      the compiled programs instead of constants in them, and later calls with
      the same function and shapes compile nothing. For 'autoattack_rand' it
      takes one key per image [B] as last argument.
    images: [N, H, W, C] float in [0, 1].
    labels: [N] integers.
    epsilon: radius in pixel range 0-1, such as 8 / 255 or '8/255'.
    norm: 'linf', 'l2' or 'l1'.
    suite: a name of SUITES, an attack such as 'apgd_ce' or 'pgd-20x5', or a
      tuple of them.
    seed: seed of all random keys.
    batch_size: largest number of images in a batch, over all devices of this
      process.
    show: text -> None, told what was compiled and what has come out.

  Returns:
    Flags, margins and adversarial images of every attack; 'robust' is the
    worst case.

  Raises:
    UserError: images that are not floats in [0, 1], labels that do not fit,
      probabilities for logits, logits or gradients that are not finite, one
      class, a radius of 0 or less or beyond the pixel range, an unknown norm
      or attack, no attack.

  Examples:
    >>> result = autoattack(logits_fn, image, label, epsilon='8/255',
    ...                     suite='pgd-5', show=lambda text: None)
    >>> result.correct['robust'].shape
    (4,)
  """
  check_norm(norm, ('linf', 'l2', 'l1'))
  if not suite:
    raise UserError(f"suite={suite!r} attacks nothing; use ('autoattack',)")
  suite = (suite,) if isinstance(suite, str) else suite
  images, labels = check_images(images, labels)
  radius = read_epsilon(epsilon)
  if norm == 'linf' and radius > 1:
    raise UserError(
      f'epsilon={epsilon} is larger than the pixel range 0-1; write '
      f'{epsilon}/255 for {epsilon} grey levels'
    )
  jobs = plan(suite, Budget(norm, radius, step_size=radius / 4))
  network = _on_all_devices(as_partial(model))
  noisy = jobs[0].budget.num_eot > 1
  check_logits(network, images[:batch_size], labels, noisy, show)
  return run_jobs(
    jobs,
    Victim(network, network),
    Images(lambda index: images[index], labels),
    seed,
    make_runner(batch_size, len(labels), images.shape[1:], Progress(show)),
  )


def as_partial(model: LogitsFn) -> Partial:
  """Returns a model as `Partial`, whose arrays are arguments of programs."""
  make = getattr(model, 'as_partial', None)
  if make is not None:
    return make()
  return model if isinstance(model, Partial) else Partial(model)


def _on_all_devices(network: Partial) -> Partial:
  if parallel.num_devices() == 1:
    return network
  return parallel.replicate(network, jax.local_devices())


def check_images(
  image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns float32 images and int32 labels.

  Raises:
    UserError: they are not [N, H, W, C] floats in [0, 1] and [N] integers.
  """
  image, label = np.asarray(image), np.asarray(label)
  if image.ndim != 4 or label.shape != image.shape[:1] or not len(label):
    raise UserError(
      f'image has shape {image.shape} and label {label.shape}; give [N, H, W, '
      'C] images and one label for each'
    )
  _, height, width, channels = image.shape
  if height in (1, 3) and channels == width > 4:
    raise UserError(
      f'image has shape {image.shape}, which looks like [N, C, H, W]; give '
      '[N, H, W, C], with image.transpose(0, 2, 3, 1), and let the network '
      'transpose back if it must'
    )
  if not np.issubdtype(label.dtype, np.integer):
    raise UserError(
      f'label is {label.dtype}; give integers from 0, the index of each class'
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
def _call(apply: Partial, *args) -> Any:
  return apply(*args)


def check_logits(
  apply: Partial,
  image: np.ndarray,
  label: np.ndarray,
  noisy: bool = False,
  say: Callable[[str], None] = lambda text: None,
) -> None:
  """Refuses what cannot be attacked.

  Args:
    apply: the network.
    image: [n, H, W, C] float32, a few of the images.
    label: [N] labels of all images.
    noisy: whether `apply` takes keys [n] as second argument.
    say: text -> None, told when logits are less precise than float32.

  Raises:
    UserError: one class, a label out of range, NaN, probabilities, outputs
      that are not logits alone, or a model in training mode.
  """
  keys = jax.random.split(jax.random.key(0), len(image))
  try:
    output = _call(apply, image, *([keys] if noisy else []))
  except FlaxError as error:
    if type(error).__name__ not in _IN_TRAINING:
      raise
    raise UserError(
      'the model changes its own state when it is called, as BatchNorm and '
      'dropout do in training mode; call model.eval() (NNX), or set '
      'use_running_average=True (Linen)'
    ) from error
  logits = _only_logits(output, len(image), say)
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


def _only_logits(
  output: Any, count: int, say: Callable[[str], None]
) -> np.ndarray:
  """Returns the logits as float32; refuses anything else."""
  if not isinstance(output, jax.Array):
    part = '[0]'
    if isinstance(output, dict):
      part = "['logits']"
    elif hasattr(output, 'logits'):
      part = '.logits'
    raise UserError(
      f'apply returns a {type(output).__name__}; it must return logits alone, '
      f'such as lambda x: apply(x){part}'
    )
  if output.ndim != 2 or len(output) != count or output.shape[1] < 2:
    raise UserError(
      f'apply returns {output.shape} for {count} images; it must return one '
      'row of logits each, of at least 2 classes'
    )
  if output.dtype.itemsize < 4:
    say(
      f'flags are decided in float32, but apply returns {output.dtype} logits, '
      'whose rounding decides near ties; return float32 for numbers that count'
    )
  return np.asarray(output, np.float32)
