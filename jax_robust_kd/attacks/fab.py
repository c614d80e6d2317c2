"""FAB: the nearest misclassified point, by projections (Croce & Hein 2020).

At each step the network is replaced by its linearization, the decision boundary
becomes a hyperplane, and the iterate is projected onto it; a share of the
projection of the image itself draws it back to the image. There is no step
size. The epsilon of the budget does not steer the search: it says what counts,
and how far a random start lies.

The reference program, github.com/fra31/auto-attack at a392200, is followed: no
random start in the first restart, and no search along the line to the image at
the end, which the first version of FAB had.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.attacks import hyperplane
from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.stepwise import Problem, Stepwise
from jax_robust_kd.core import Array
from jax_robust_kd.losses import margin

_ALPHA_MAX = 0.1  # largest share of the image's own projection
_ETA = 1.05  # overshoots the hyperplane, so as to cross the boundary
_BETA = 0.9  # share kept of a misclassified iterate's way from the image
_SHORTEST = 1e-8  # of a projection, in the quotient of their lengths
_CHUNK = 25
_NUM_STEPS = 100  # where the budget names none


class State(NamedTuple):
  """Where the search is; B images.

  Attributes:
    adv: [B, H, W, C] nearest misclassified point within epsilon, or the image.
    fooled: [B] bool, whether there is one.
    distance: [B] of `adv` from the image, infinite while there is none.
    target: [B] int32, the class aimed at; unused when untargeted.
    iterate: [B, H, W, C] in [0, 1], at any distance.
  """

  adv: Array
  fooled: Array
  distance: Array
  target: Array
  iterate: Array


class Boundary(NamedTuple):
  """The linearized boundary gap + <normal, x - iterate> = 0."""

  gap: Array  # [B] logit of the other class minus that of the label
  normal: Array  # [B, H, W, C] its gradient


def _length(x: Array, norm: str) -> Array:
  """Returns the norm of each row, [B, ...] -> [B]."""
  x = jnp.abs(x.reshape(len(x), -1))
  if norm == 'linf':
    return jnp.max(x, axis=1)
  return jnp.sqrt(jnp.sum(x**2, axis=1)) if norm == 'l2' else jnp.sum(x, axis=1)


def _per_image(values: Array, image: Array) -> Array:
  """Shapes [B] so that it broadcasts against the images."""
  return values.reshape(-1, *[1] * (image.ndim - 1))


def _targets(budget: Budget, num_classes: int) -> int:
  return min(budget.num_targets, num_classes - 1)


def _targeted(problem: Problem, state: State) -> Boundary:
  """The boundary between the label and the target; one pass back."""

  def gap(x):
    logits = problem.logits_fn(x)
    rows = jnp.arange(len(x))
    gaps = logits[rows, state.target] - logits[rows, problem.label]
    return jnp.sum(gaps), gaps

  normal, gaps = jax.grad(gap, has_aux=True)(state.iterate)
  return Boundary(gaps, normal)


def _untargeted(problem: Problem, state: State) -> Boundary:
  """The nearest boundary of the label's class; one pass back for each class.

  Only the nearest so far is kept: the gradients of all classes together would
  be K times the images.
  """
  dual = {'linf': 'l1', 'l2': 'l2', 'l1': 'linf'}[problem.budget.norm]
  logits, pull_back = jax.vjp(problem.logits_fn, state.iterate)
  classes = jnp.arange(logits.shape[-1])
  is_label = classes == problem.label[:, None]
  gaps = logits - jnp.sum(jnp.where(is_label, logits, 0), 1, keepdims=True)

  def compare(nearest, other):
    distance, boundary = nearest
    one_hot = jnp.where(classes == other, 1.0, 0.0) - is_label
    (normal,) = pull_back(one_hot.astype(logits.dtype))
    gap = jnp.take(gaps, other, axis=1)
    here = jnp.abs(gap) / (1e-12 + _length(normal, dual))
    here = jnp.where(other == problem.label, jnp.inf, here)
    nearer = here < distance
    return (
      jnp.where(nearer, here, distance),
      Boundary(
        jnp.where(nearer, gap, boundary.gap),
        jnp.where(_per_image(nearer, normal), normal, boundary.normal),
      ),
    ), None

  none_yet = Boundary(jnp.zeros_like(gaps[:, 0]), jnp.zeros_like(state.iterate))
  first = (jnp.full(len(gaps), jnp.inf), none_yet)
  return jax.lax.scan(compare, first, classes)[0][1]


def _approach(image: Array, iterate: Array, plane: Boundary, norm: str):
  """Returns the next iterate: a mean of two projections, overshot (alg. 1)."""
  flat = image.reshape(len(image), -1)
  points = jnp.stack([iterate.reshape(flat.shape), flat])
  normal = plane.normal.reshape(flat.shape)
  offset = jnp.sum(normal * points[0], axis=1) - plane.gap
  steps = hyperplane.project(points, normal[None], offset[None], norm)
  lengths = [jnp.maximum(_length(step, norm), _SHORTEST) for step in steps]
  alpha = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), _ALPHA_MAX)
  alpha = alpha[:, None]
  ahead = points + _ETA * steps
  mixed = ahead[0] * (1 - alpha) + ahead[1] * alpha
  return jnp.clip(mixed, 0.0, 1.0).reshape(image.shape)


def _start(problem: Problem) -> Array:
  """The image, or half of epsilon away from it in later restarts."""
  norm, image = problem.budget.norm, problem.image
  draw = jax.random.normal
  if norm == 'linf':
    draw = partial(jax.random.uniform, minval=-1.0, maxval=1.0)
  noise = jax.vmap(lambda key: draw(key, image.shape[1:]))(problem.rng)
  scale = problem.budget.epsilon / _length(noise, norm) / 2
  return jnp.clip(image + _per_image(scale, image) * noise, 0.0, 1.0)


def _init(problem: Problem, targeted: bool) -> State:
  """Chooses the target by the clean logits, and the start."""
  size = len(problem.image)
  target, restart, iterate = problem.label, problem.run, problem.image
  if targeted:
    logits = problem.logits_fn(problem.image)
    count = _targets(problem.budget, logits.shape[-1])
    likeliest = jnp.argsort(-logits, axis=1)
    target = jnp.take(likeliest, problem.run % count + 1, axis=1)
    restart = problem.run // count
  if problem.budget.num_restarts > 1:
    iterate = jnp.where(restart > 0, _start(problem), iterate)
  return State(
    adv=problem.image,
    fooled=jnp.zeros(size, bool),
    distance=jnp.full(size, jnp.inf),
    target=target.astype(jnp.int32),
    iterate=iterate,
  )


def _step(
  problem: Problem,
  index: Array,
  state: State,
  linearize: Callable[[Problem, State], Boundary],
) -> State:
  """One projection; a misclassified point is kept if it is the nearest."""
  del index
  image, norm = problem.image, problem.budget.norm
  plane = linearize(problem, state)
  point = _approach(image, state.iterate, plane, norm)
  wrong = margin(problem.logits_fn(point), problem.label) > 0
  distance = _length(point - image, norm)
  nearer = wrong & (distance < state.distance)
  nearer &= distance <= problem.budget.epsilon
  drawn_back = image + _BETA * (point - image)
  return State(
    adv=jnp.where(_per_image(nearer, image), point, state.adv),
    fooled=state.fooled | nearer,
    distance=jnp.where(nearer, distance, state.distance),
    target=state.target,
    iterate=jnp.where(_per_image(wrong, image), drawn_back, point),
  )


FAB = Stepwise(
  init=partial(_init, targeted=False),
  step=partial(_step, linearize=_untargeted),
  num_runs=lambda budget, num_classes: budget.num_restarts,
  num_steps=lambda budget: budget.num_steps or _NUM_STEPS,
  chunk=_CHUNK,
)
FAB_T = Stepwise(
  init=partial(_init, targeted=True),
  step=partial(_step, linearize=_targeted),
  num_runs=lambda budget, num_classes: (
    budget.num_restarts * _targets(budget, num_classes)
  ),
  num_steps=lambda budget: budget.num_steps or _NUM_STEPS,
  chunk=_CHUNK,
)
