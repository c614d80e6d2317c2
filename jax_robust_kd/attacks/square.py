"""Square Attack: random search by windows (Andriushchenko et al. 2020).

One forward pass a step and no gradient, so that a defence that hides gradients
does not stop it. A proposal is kept when the margin rises. Windows begin large
and halve in area along a fixed schedule.

The reference program, github.com/fra31/auto-attack at a392200, is followed,
but for whose the draws are: there, in l_inf, all images of a batch share one
window and one sign; here each image has its own, so that its result does not
depend on its neighbours. l_1 is in the program only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.attacks import l1, square_windows
from jax_robust_kd.attacks.stepwise import Problem, Stepwise
from jax_robust_kd.core import Array, fold_in
from jax_robust_kd.losses import margin

_NUM_QUERIES = 5000  # where the budget names none
_TINY = 1e-12  # keeps the direction of an empty window finite
_INSIDE = 1.0 - 1e-6  # of the l_1 ball, so that rounding does not leave it


class State(NamedTuple):
  """Where the search is; B images.

  Attributes:
    adv: [B, H, W, C] `point` if it is misclassified, else the image.
    fooled: [B] bool, whether it is; from then on nothing changes.
    point: [B, H, W, C] the largest margin so far, in ball and box.
    margin: [B] there.
  """

  adv: Array
  fooled: Array
  point: Array
  margin: Array


class Start(NamedTuple):
  """The draws of the first point; R x S tiles."""

  sign: Array  # [B, R, S, C] -1 or 1
  lying: Array  # [B, R, S] bool, whether a tile's pattern is transposed


class Draw(NamedTuple):
  """The draws of one step; l_inf does without `source` and `lying`."""

  corner: Array  # [B, 2] int32, upper left pixel of the window that is filled
  source: Array  # [B, 2] int32, of the one that is emptied
  sign: Array  # [B, C] -1 or 1
  lying: Array  # [B] bool, whether the pattern is transposed


def _signs(number: Array) -> Array:
  """Turns numbers in [0, 1) into -1 and 1."""
  return jnp.where(number < 0.5, -1.0, 1.0)


def draw_start(problem: Problem) -> Start:
  """Draws signs and orientations from each image's key.

  All of them at once: each draw takes XLA:CPU a tenth of a second to compile.
  """
  _, height, width, channels = problem.image.shape
  norm = problem.budget.norm
  rows, columns = square_windows.tiling(height, width, norm).grid

  def one(key):
    number = jax.random.uniform(key, (rows, columns, channels + 1))
    return Start(_signs(number[..., 1:]), number[..., 0] < 0.5)

  return jax.vmap(one)(fold_in(problem.rng, 0))


def draw_step(problem: Problem, index: Array) -> Draw:
  """Draws a step from each image's key.

  A window never touches the last row and column, unless it is as high or as
  wide as the image: the reference truncates U * (height - side), with U < 1.
  """
  _, height, width, channels = problem.image.shape
  side = _side(problem, index)
  free = jnp.array([height, width]) - side

  def one(key):
    number = jax.random.uniform(key, (5 + channels,))
    corner, source = (number[:4].reshape(2, 2) * free).astype(jnp.int32)
    return Draw(corner, source, _signs(number[5:]), number[4] < 0.5)

  return jax.vmap(one)(fold_in(problem.rng, index + 1))


def _level(index: Array) -> Array:
  """How often the window's area has halved before step `index`."""
  return jnp.sum(index > square_windows.HALVED_AFTER)


def _side(problem: Problem, index: Array) -> Array:
  _, height, width, _ = problem.image.shape
  sizes = square_windows.sizes(height, width, problem.budget.norm)
  return jnp.asarray(sizes)[_level(index)]


def _window(shape: tuple[int, ...], corner: Array, side: Array) -> Array:
  """Returns where the window is, [B, H, W, 1] bool."""
  _, height, width, _ = shape
  row = jnp.arange(height) - corner[:, :1]
  column = jnp.arange(width) - corner[:, 1:]
  inside = [(offset >= 0) & (offset < side) for offset in (row, column)]
  return (inside[0][:, :, None] & inside[1][:, None, :])[..., None]


def _pattern(problem: Problem, index: Array, draw: Draw) -> Array:
  """Returns the pattern inside the window, 0 outside, [B, H, W, 1]."""
  _, height, width, _ = problem.image.shape
  table = square_windows.patterns(height, width, problem.budget.norm)
  pattern = jnp.asarray(table)[_level(index)]
  extra = [(0, side - len(pattern)) for side in (height, width)]

  def move(corner, lying):
    turned = jnp.pad(jnp.where(lying, pattern.T, pattern), extra)
    return jnp.roll(turned, corner, axis=(0, 1))

  return jax.vmap(move)(draw.corner, draw.lying)[..., None]


def _length(delta: Array, norm: str, axes: tuple[int, ...]) -> Array:
  """The l_2 or l_1 norm over `axes`, which are kept."""
  if norm == 'l1':
    return jnp.sum(jnp.abs(delta), axes, keepdims=True)
  return jnp.sqrt(jnp.sum(delta**2, axes, keepdims=True))


def _to_ball(problem: Problem, delta: Array) -> Array:
  """Returns a point in ball and box; in l_2 `delta` is stretched, too."""
  image, budget = problem.image, problem.budget
  norm, epsilon = budget.norm, budget.epsilon
  if norm == 'l1':
    return l1.project(image, delta, epsilon * _INSIDE)
  delta = delta / (_length(delta, norm, (1, 2, 3)) + _TINY) * epsilon
  return jnp.clip(image + delta, 0.0, 1.0)


def _first_point(problem: Problem, start: Start) -> Array:
  """Stripes of one sign in l_inf, tiles of the pattern in l_2 and l_1."""
  image, budget = problem.image, problem.budget
  norm, epsilon = budget.norm, budget.epsilon
  _, height, width, _ = image.shape
  tiles = square_windows.tiling(height, width, norm)
  at = np.ix_(tiles.row, tiles.column)
  lying = start.lying[:, *at]
  value = jnp.where(lying, tiles.lying, tiles.upright)
  delta = start.sign[:, *at] * value[..., None]
  if norm == 'linf':
    return jnp.clip(image + epsilon * delta, 0.0, 1.0)
  return _to_ball(problem, delta)


def _proposal_linf(problem, point, index, draw):
  """Moves the window by twice epsilon, then clips (alg. 2)."""
  image, epsilon = problem.image, problem.budget.epsilon
  window = _window(image.shape, draw.corner, _side(problem, index))
  point += 2 * epsilon * draw.sign[:, None, None, :] * window
  point = jnp.clip(point, image - epsilon, image + epsilon)
  return jnp.clip(point, 0.0, 1.0)


def _proposal(problem, point, index, draw):
  """Moves what one window holds, and what is unused, to another (alg. 3)."""
  image, budget = problem.image, problem.budget
  norm, epsilon = budget.norm, budget.epsilon
  channels = image.shape[-1]
  delta = point - image
  side = _side(problem, index)
  filled = _window(image.shape, draw.corner, side)
  either = filled | _window(image.shape, draw.source, side)
  used = _length(delta, norm, (1, 2, 3))
  held = _length(delta * either, norm, (1, 2))
  if norm == 'l2':
    unused = jnp.maximum(epsilon**2 - used**2, 0)
    amount = jnp.sqrt(unused / channels + held**2)
  else:
    unused = jnp.maximum(epsilon - used, 0)
    amount = (unused / channels + held) * channels
  old = delta * filled
  old = old / (_TINY + _length(old, norm, (1, 2)))
  sign = draw.sign[:, None, None, :]
  new = sign * _pattern(problem, index, draw) + old
  new = new / (_TINY + _length(new, norm, (1, 2))) * amount
  delta = jnp.where(filled, new, jnp.where(either, 0, delta))
  return _to_ball(problem, delta)


def begin(problem: Problem, start: Start) -> State:
  """Returns the state at the first point."""
  point = _first_point(problem, start)
  value = margin(problem.logits_fn(point), problem.label)
  fooled = value > 0
  adv = jnp.where(fooled[:, None, None, None], point, problem.image)
  return State(adv, fooled, point, value)


def update(problem: Problem, index: Array, state: State, draw: Draw) -> State:
  """Keeps the proposal of these draws where it raises the margin."""
  propose = _proposal_linf if problem.budget.norm == 'linf' else _proposal
  point = propose(problem, state.point, index, draw)
  value = margin(problem.logits_fn(point), problem.label)
  better = ~state.fooled & (value > state.margin)
  fooled = state.fooled | (better & (value > 0))
  keep = better[:, None, None, None]
  point = jnp.where(keep, point, state.point)
  return State(
    adv=jnp.where(fooled[:, None, None, None], point, problem.image),
    fooled=fooled,
    point=point,
    margin=jnp.where(better, value, state.margin),
  )


SQUARE = Stepwise(
  init=lambda problem: begin(problem, draw_start(problem)),
  step=lambda problem, index, state: update(
    problem, index, state, draw_step(problem, index)
  ),
  num_runs=lambda budget, num_classes: budget.num_restarts,
  num_steps=lambda budget: budget.num_steps or _NUM_QUERIES,
  chunk=250,
)
