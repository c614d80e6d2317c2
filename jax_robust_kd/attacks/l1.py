"""Geometry of the l_1 ball cut with the box [0, 1] (Croce & Hein 2021).

In l_1 the ball and the box together behave unlike the ball alone: steps that
change few pixels are the steepest, and how few depends on the box.
"""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array

# Below this a change of a pixel is a rounding error. It has to vanish, as the
# number of changed pixels steers the attack.
_RESIDUE = 5e-7
_HALVINGS = 32  # brings the threshold below the resolution of float32


def project(image: Array, delta: Array, radius: Array | float) -> Array:
  """Returns the point of ball and box that is nearest to `image` + `delta`.

  Each pixel keeps its sign and shrinks by one common threshold t to
  clip(|delta| - t, 0, room), where room is the way to the box's wall; t is the
  least that brings the sum down to `radius` (Croce & Hein 2021). The sum falls
  with t, so bisection finds t; the end inside the ball is taken.

  Args:
    image: [B, H, W, C] in [0, 1], the centres.
    delta: [B, H, W, C], any values.
    radius: of the ball, sum over pixels in range 0-1.

  Returns:
    [B, H, W, C] points, exactly equal to `image` where nothing is changed.
  """
  axes = tuple(range(1, delta.ndim))
  size = jnp.abs(delta)
  room = jnp.where(delta > 0, 1.0 - image, image)

  def shrunk(threshold):
    return jnp.clip(size - threshold, 0.0, room)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    inside = jnp.sum(shrunk(middle), axes, keepdims=True) <= radius
    return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

  zero = jnp.zeros_like(jnp.max(size, axes, keepdims=True))
  top = jnp.max(size, axes, keepdims=True)
  _, threshold = jax.lax.fori_loop(0, _HALVINGS, halve, (zero, top))
  box_alone = jnp.sum(shrunk(zero), axes, keepdims=True) <= radius
  left = shrunk(jnp.where(box_alone, zero, threshold))
  left = jnp.where(left < _RESIDUE, 0.0, left)
  return jnp.clip(image + jnp.sign(delta) * left, 0.0, 1.0)


def support(delta: Array) -> Array:
  """Returns how many entries of each `delta` [B, ...] are not zero, [B]."""
  axes = tuple(range(1, delta.ndim))
  return jnp.sum(delta != 0, axes).astype(jnp.float32)


def sparse_direction(gradient: Array, changed: Array) -> Array:
  """Signs of the largest entries of `gradient`, of length 1 in l_1.

  Args:
    gradient: [B, H, W, C].
    changed: [B] pixels that the best point changes; about two thirds as many
      are changed by a step.
  """
  flat = jnp.abs(gradient).reshape(len(gradient), -1)
  pixels = flat.shape[1]
  share = changed / pixels / 1.5
  rank = jnp.clip((1.0 - share) * pixels, 0, pixels - 1).astype(jnp.int32)
  least = jnp.take_along_axis(jnp.sort(flat, axis=1), rank[:, None], axis=1)
  sign = jnp.sign(jnp.where(flat >= least, gradient.reshape(flat.shape), 0.0))
  length = jnp.sum(jnp.abs(sign), axis=1, keepdims=True)
  return (sign / (length + 1e-10)).reshape(gradient.shape)
