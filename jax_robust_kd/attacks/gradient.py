"""Gradient attacks for evaluation: one ascent loop on several losses.

Every attack is a pure function

  attack(rng, logits_fn, image, label, budget) -> adv

  rng        [B] keys, one per image
  logits_fn  image [B, H, W, C] -> logits [B, K]
  image      [B, H, W, C] float32 in [0, 1]
  label      [B] int32
  budget     norm, radius in pixel range 0-1, and length
  adv        [B, H, W, C] inside the ball and [0, 1]

Of several restarts, the one with the largest margin is returned, per image.
All raise UserError for images that are not floats, an unknown norm, and a
radius that is known while tracing and 0 or less.
"""

from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.attacks.ascent import ascent, check_norm
from jax_robust_kd.core import Array, LogitsFn, LossFn, UserError, fold_in
from jax_robust_kd.losses import cross_entropy, kl_divergence, margin

NUM_STEPS = 20  # of the attacks here, where the budget names none


class Budget(NamedTuple):
  """The threat model and the length of an attack.

  Attributes:
    norm: 'linf' or 'l2'; AutoAttack's attacks also take 'l1'.
    epsilon: radius in pixel range 0-1.
    step_size: length of a step, same unit; AutoAttack's choose their own.
    num_steps: number of steps of each restart; 0 is the attack's own: 20 for
      the attacks of this file, 100 for AutoAttack's, 5000 queries for Square.
    num_restarts: number of independent starts.
    init: 'zero', 'uniform' or 'gaussian'; AutoAttack's have their own.
    num_targets: number of classes that a targeted attack tries, the likeliest
      first.
    num_eot: number of draws whose gradients are averaged, for networks with
      randomness (expectation over transformation); 1 for all others.

  Examples:
    >>> budget = Budget('linf', 8 / 255, step_size=2 / 255, num_steps=10)
    >>> budget._replace(num_restarts=5).num_steps
    10
  """

  norm: str
  epsilon: float
  step_size: float
  num_steps: int = 0
  num_restarts: int = 1
  init: str = 'uniform'
  num_targets: int = 9
  num_eot: int = 1


def read_epsilon(epsilon: float | str) -> float:
  """Returns a radius that may be written as text, such as '8/255'.

  Raises:
    UserError: text that is no number, or a radius of 0 or less.
  """
  try:
    radius = float(Fraction(epsilon) if isinstance(epsilon, str) else epsilon)
  except (ValueError, ZeroDivisionError):
    raise UserError(
      f"epsilon={epsilon!r} is not a number; write it like '8/255' or 0.5"
    ) from None
  check_epsilon(radius)
  return radius


def check_epsilon(epsilon: float) -> None:
  """Refuses a radius of 0 or less.

  Raises:
    UserError: it is.
  """
  if not epsilon > 0:
    raise UserError(
      f'epsilon={epsilon} must be above 0; write it in pixel range 0-1, such '
      'as 8/255'
    )


def check_arguments(
  image: Array, budget: Budget, norms: tuple[str, ...]
) -> None:
  """Refuses what an attack would take in silence.

  Raises:
    UserError: images that are not floats, an unknown norm, or a radius that is
      known while tracing and 0 or less.
  """
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise UserError(
      f'image is {image.dtype}; give floats in [0, 1], for 8-bit images '
      'image / 255'
    )
  check_norm(budget.norm, norms)
  if isinstance(budget.epsilon, (int, float)):
    check_epsilon(budget.epsilon)


def fgsm(
  rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
) -> Array:
  """FGSM (Goodfellow et al. 2015): one step of length epsilon from the image.

  adv = clip(x + epsilon sign(grad_x CE(f(x), y)), 0, 1), their sec. 4; in l_2
  the step is along grad / |grad|.

  Examples:
    >>> adv = fgsm(rng, logits_fn, image, label, budget)
    >>> bool(jnp.all(jnp.abs(adv - image) <= budget.epsilon + 1e-6))
    True
  """
  one_step = budget._replace(
    step_size=budget.epsilon, num_steps=1, num_restarts=1, init='zero'
  )
  return pgd(rng, logits_fn, image, label, one_step)


def pgd(
  rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
) -> Array:
  """PGD (Madry et al. 2018): ascent on the cross-entropy of the label.

  x_{t+1} = project(x_t + step_size sign(grad_x CE(f(x_t), y))), their sec. 2.1.

  Examples:
    >>> adv = pgd(rng, logits_fn, image, label, budget)
    >>> adv.shape == image.shape
    True
  """

  def loss_fn(x):
    logits = logits_fn(x)
    return cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1]))

  return _restarts(rng, loss_fn, logits_fn, image, label, budget)


def kl_pgd(
  rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
) -> Array:
  """The attack of TRADES (Zhang et al. 2019): ascent on KL(clean || adv).

  Maximizes KL(softmax f(x) || softmax f(x')) over x', their alg. 1. At a zero
  start its gradient is zero: use a random one.

  Examples:
    >>> adv = kl_pgd(rng, logits_fn, image, label, budget)
    >>> adv.shape == image.shape
    True
  """
  clean = jax.lax.stop_gradient(logits_fn(image))

  def loss_fn(x):
    return kl_divergence(logits_fn(x), clean)

  return _restarts(rng, loss_fn, logits_fn, image, label, budget)


def cw(
  rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
) -> Array:
  """PGD on the loss of Carlini and Wagner (2017): ascent on the margin.

  Maximizes max_{k != y} f_k(x') - f_y(x'), their f_6 untargeted and without
  its hinge, inside the ball.

  Examples:
    >>> adv = cw(rng, logits_fn, image, label, budget)
    >>> adv.shape == image.shape
    True
  """

  def loss_fn(x):
    return margin(logits_fn(x), label)

  return _restarts(rng, loss_fn, logits_fn, image, label, budget)


def _restarts(
  rng: Array,
  loss_fn: LossFn,
  logits_fn: LogitsFn,
  image: Array,
  label: Array,
  budget: Budget,
) -> Array:
  """Runs all restarts and keeps the largest margin, image by image."""
  check_arguments(image, budget, ('linf', 'l2'))

  def restart(best, index):
    best_adv, best_margin = best
    adv = ascent(
      fold_in(rng, index),
      loss_fn,
      image,
      norm=budget.norm,
      epsilon=budget.epsilon,
      step_size=budget.step_size,
      num_steps=budget.num_steps or NUM_STEPS,
      init=budget.init,
    ).adv
    value = margin(logits_fn(adv), label)
    better = value > best_margin
    adv = jnp.where(better[:, None, None, None], adv, best_adv)
    return (adv, jnp.where(better, value, best_margin)), None

  nothing_yet = jnp.full(image.shape[0], -jnp.inf)
  indices = jnp.arange(budget.num_restarts)
  (adv, _), _ = jax.lax.scan(restart, (image, nothing_yet), indices)
  return adv
