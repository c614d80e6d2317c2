"""What the checks run: PGD that keeps a trace, noise, and three attacks.

Radius, step size and number of steps are traced by JAX, so that each program
compiles once for a model and serves all radii and numbers of steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd import attacks
from jax_robust_kd.attacks import Budget, l1
from jax_robust_kd.attacks.ascent import direction, project
from jax_robust_kd.checks.model import Model, Outcome, in_batches
from jax_robust_kd.core import Array, fold_in, image_keys
from jax_robust_kd.losses import cross_entropy, margin

OWN_ATTACKS = {
  'apgd_ce': attacks.apgd_ce,
  'apgd_t': attacks.apgd_t,
  'square': attacks.square,
}
_TINY = 1e-30  # keeps a zero gradient finite
_SPARSE = 0.05  # share of the pixels that a step of PGD changes in l_1


class Trace(NamedTuple):
  """Margins, losses and gradients of PGD at the start and after S steps.

  Where it was not run that far, the margin is -inf and the loss inf.

  Attributes:
    correct: [N] bool, whether the image itself is classified correctly.
    margin: [N, S + 1] largest wrong logit minus the right one.
    loss: [N, S + 1] cross-entropy.
    flat: [N, S + 1] bool, whether the gradient is exactly 0 or not finite.
    adv: [N, H, W, C] the point of the largest margin.
  """

  correct: np.ndarray
  margin: np.ndarray
  loss: np.ndarray
  flat: np.ndarray
  adv: np.ndarray


def _step(gradient: Array, norm: str) -> Array:
  """Steepest direction of length 1; in l_1 spread over some pixels."""
  if norm != 'l1':
    return direction(gradient, norm)
  pixels = max(1.0, _SPARSE * gradient[0].size)
  # Entries that differ by rounding alone are equal, or it would choose pixels.
  largest = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
  gradient = jnp.round(gradient / jnp.maximum(largest, _TINY), 5)
  # `sparse_direction` takes two thirds of what the best point has changed.
  return l1.sparse_direction(gradient, jnp.full(len(gradient), 1.5 * pixels))


def _into_ball(x: Array, image: Array, norm: str, epsilon: Any) -> Array:
  if norm == 'l1':
    return l1.project(image, x - image, epsilon)
  return project(x, image, norm, epsilon)


def _random_point(keys: Array, image: Array, norm: str, epsilon: Any) -> Array:
  """Points on the sphere of the norm, cut with [0, 1]; corners for l_inf."""
  draw = jax.random.laplace if norm == 'l1' else jax.random.normal
  noise = jax.vmap(lambda key: draw(key, image.shape[1:]))(keys)
  if norm == 'l1':
    noise /= jnp.sum(jnp.abs(noise), axis=(1, 2, 3), keepdims=True)
  else:
    noise = direction(noise, norm)
  return jnp.clip(image + epsilon * noise, 0.0, 1.0)


@partial(jax.jit, static_argnames=('norm', 'max_steps'))
def _pgd(
  apply, keys, image, label, *, norm, max_steps, steps, epsilon, step_size,
  random,
):  # fmt: skip
  """PGD on the cross-entropy with its trace; see `run_pgd`."""

  def evaluate_at(x):
    logits = apply(x)
    target = jax.nn.one_hot(label, logits.shape[-1])
    loss = cross_entropy(logits, target)
    return jnp.sum(loss), (loss, margin(logits, label))

  def step(i, state):
    x, best, trace = state
    gradient, (loss, value) = jax.grad(evaluate_at, has_aux=True)(x)
    better = value > jnp.max(trace[0], axis=0)
    best = jnp.where(better[:, None, None, None], x, best)
    axes = (1, 2, 3)
    lost = ~jnp.all(jnp.isfinite(gradient), axis=axes)
    flat = jnp.all(gradient == 0, axis=axes) | lost
    trace = tuple(
      column.at[i].set(now)
      for column, now in zip(trace, (value, loss, flat), strict=True)
    )
    x = x + step_size * _step(gradient, norm)
    return _into_ball(x, image, norm, epsilon), best, trace

  # `correct` is computed without a gradient, as a score is.
  correct = margin(apply(image), label) < 0
  noisy = _random_point(keys, image, norm, epsilon)
  first = jnp.where(random, noisy, image)
  shape = (max_steps + 1, len(image))
  nothing = jnp.full(shape, -jnp.inf), jnp.full(shape, jnp.inf)
  # One evaluation more than steps: the last point is scored too.
  _, best, (value, loss, flat) = jax.lax.fori_loop(
    0, steps + 1, step, (first, image, (*nothing, jnp.zeros(shape, bool)))
  )
  return correct, value.T, loss.T, flat.T, best


def _over_images(model: Model, seed: int, run: Callable) -> Any:
  """Calls `run(apply, keys, image, label)` on all batches of a model."""
  return in_batches(
    lambda row, x, label: run(model.apply, _keys(seed, row), x, label),
    model.batch_size,
    model.row,
    model.image,
    model.label,
  )


@jax.jit
def _keys(seed, row):
  return image_keys(jax.random.key(seed), row)


def run_pgd(
  model: Model,
  *,
  norm: str,
  epsilon: float,
  steps: int,
  max_steps: int,
  seed: int,
  step_size: float | None = None,
  random: bool = True,
) -> Trace:
  """Runs PGD and returns its trace.

  Args:
    model: model and images.
    norm: 'linf', 'l2' or 'l1'.
    epsilon: radius in pixel range 0-1.
    steps: to take.
    max_steps: the most that any call takes; another compiles again.
    seed: of the start.
    step_size: same unit as epsilon; None is a quarter of it.
    random: start on the ball's surface, not at the image.
  """
  run = partial(
    _pgd,
    norm=norm,
    max_steps=max_steps,
    steps=steps,
    epsilon=epsilon,
    step_size=epsilon / 4 if step_size is None else step_size,
    random=random,
  )
  return Trace(*_over_images(model, seed, run))


@partial(jax.jit, static_argnames=('attack', 'budget'))
def _attack(apply, keys, image, label, *, attack, budget, epsilon, step_size):
  budget = budget._replace(epsilon=epsilon, step_size=step_size)
  adv = attack(keys, apply, image, label, budget)
  correct = margin(apply(image), label) < 0
  return correct & (margin(apply(adv), label) < 0), adv


def run_attack(model: Model, name: str, budget: Budget, seed: int) -> Outcome:
  """Runs an attack of OWN_ATTACKS with `budget.num_steps` steps or queries."""
  run = partial(
    _attack,
    attack=OWN_ATTACKS[name],
    budget=budget._replace(epsilon=0.0, step_size=0.0),
    epsilon=budget.epsilon,
    step_size=budget.step_size,
  )
  return Outcome(*_over_images(model, seed, run))


@partial(jax.jit, static_argnames='norm')
def _noise(apply, keys, image, label, *, norm, epsilon, draws):
  def draw(i, correct):
    x = _random_point(fold_in(keys, i), image, norm, epsilon)
    return correct & (margin(apply(x), label) < 0)

  clean = margin(apply(image), label) < 0
  return jax.lax.fori_loop(0, draws, draw, clean)


def survives_noise(
  model: Model, norm: str, epsilon: float, draws: int, seed: int
) -> np.ndarray:
  """Returns which images are correct without and under all noise, [N]."""
  run = partial(_noise, norm=norm, epsilon=epsilon, draws=draws)
  return _over_images(model, seed, run)


def survives(trace: Trace, steps: int | None = None) -> np.ndarray:
  """Returns which images are correct at the start and on the whole path, [N].

  Args:
    trace: of PGD.
    steps: how many of its first steps to look at; None is all.
  """
  last = None if steps is None else steps + 1
  return trace.correct & np.all(trace.margin[:, :last] < 0, axis=1)


def after(trace: Trace, steps: int) -> np.ndarray:
  """Returns which images are correct at the start and after some steps, [N]."""
  return trace.correct & (trace.margin[:, steps] < 0)
