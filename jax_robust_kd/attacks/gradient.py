"""Gradient attacks for evaluation, on top of the one ascent loop.

Every attack is a pure function

  attack(rng, logits_fn, image, label, *, norm, epsilon, ...) -> adv

with rng [B] keys, logits_fn: [B, H, W, C] -> [B, K], image [B, H, W, C] float32
in [0, 1], label [B] int32, epsilon in pixel range 0-1; it returns [B, H, W, C]
inside the ball and [0, 1]. With several restarts the one with the largest
margin is kept, image by image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.attacks.ascent import ascent, check_norm
from jax_robust_kd.core import Array, LogitsFn, UserError, fold_in
from jax_robust_kd.losses import cross_entropy, kl_divergence, margin

NUM_STEPS = 20  # of the attacks here, where the budget names none


class Budget(NamedTuple):
  """How far and how long an attack may go.

  Attributes:
    norm: 'linf' or 'l2'; AutoAttack's attacks also take 'l1'.
    epsilon: radius in pixel range 0-1.
    step_size: length of a step, same unit; AutoAttack's choose their own.
    num_steps: steps of each restart; 0 is the attack's own number: 20 here, of
      AutoAttack's 100, and 5000 queries of Square.
    num_restarts: independent starts.
    init: 'zero', 'uniform' or 'gaussian'; AutoAttack's have their own.
    num_targets: classes that a targeted attack tries, the likeliest first.
    num_eot: draws whose gradients are averaged, for networks with randomness
      (expectation over transformation); 1 for all others.
  """

  norm: str
  epsilon: float
  step_size: float
  num_steps: int = 0
  num_restarts: int = 1
  init: str = 'uniform'
  num_targets: int = 9
  num_eot: int = 1


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
  """One step of length epsilon from the image (Goodfellow et al. 2015)."""
  one_step = budget._replace(
    step_size=budget.epsilon, num_steps=1, num_restarts=1, init='zero'
  )
  return pgd(rng, logits_fn, image, label, one_step)


def pgd(
  rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
) -> Array:
  """Ascent on the cross-entropy against the label (Madry et al. 2018)."""

  def loss_fn(x):
    logits = logits_fn(x)
    return cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1]))

  return _restarts(rng, loss_fn, logits_fn, image, label, budget)


def kl_pgd(
  rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
) -> Array:
  """Ascent on KL(clean || adv), the attack of TRADES (Zhang et al. 2019).

  From a zero start its first gradient is zero: use a random one.
  """
  clean = jax.lax.stop_gradient(logits_fn(image))

  def loss_fn(x):
    return kl_divergence(logits_fn(x), clean)

  return _restarts(rng, loss_fn, logits_fn, image, label, budget)


def cw(
  rng: Array, logits_fn: LogitsFn, image: Array, label: Array, budget: Budget
) -> Array:
  """Ascent on the largest wrong logit minus the right one (CW, 2017)."""

  def loss_fn(x):
    return margin(logits_fn(x), label)

  return _restarts(rng, loss_fn, logits_fn, image, label, budget)


def _restarts(rng, loss_fn, logits_fn, image, label, budget):
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
