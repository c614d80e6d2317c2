"""Projected gradient ascent on any per-example loss, by `jax.grad`.

One loop serves every attack and every method's inner maximization. A loss is
always maximized; to go down, negate it.
"""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Ascent, LossFn, UserError

_TINY = 1e-12  # keeps the direction of a zero gradient finite


def check_norm(norm: str, known: tuple[str, ...]) -> None:
  """Refuses a norm that an attack does not know.

  Raises:
    UserError: it is not one of `known`.
  """
  if norm not in known:
    raise UserError(f'norm={norm!r} is unknown here; use one of {known}')


def _norms(x: Array) -> Array:
  """l_2 norm of each example, shaped to broadcast against it."""
  axes = tuple(range(1, x.ndim))
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def project(adv: Array, image: Array, norm: str, epsilon: float) -> Array:
  """Returns the point of the ball around `image`, cut with [0, 1].

  For l_inf this is the nearest such point. For l_2 the difference is scaled
  to length `epsilon` and then clipped to [0, 1]: clipping moves towards the
  image, so the result lies in both sets.

  Args:
    adv: [B, H, W, C], any values.
    image: [B, H, W, C] in [0, 1], the centres.
    norm: 'linf' or 'l2'.
    epsilon: radius in pixel range 0-1.
  """
  delta = adv - image
  if norm == 'linf':
    delta = jnp.clip(delta, -epsilon, epsilon)
  else:
    delta *= jnp.minimum(1.0, epsilon / jnp.maximum(_norms(delta), _TINY))
  return jnp.clip(image + delta, 0.0, 1.0)


def direction(grad: Array, norm: str) -> Array:
  """Steepest direction of unit length in `norm`: the sign, or grad / |grad|."""
  if norm == 'linf':
    return jnp.sign(grad)
  return grad / jnp.maximum(_norms(grad), _TINY)


def start(
  rng: Array, image: Array, norm: str, epsilon: float, init: str
) -> Array:
  """Returns the first iterate, inside the ball and [0, 1].

  Args:
    rng: [B] keys, one per image.
    image: [B, H, W, C] in [0, 1].
    norm: 'linf' or 'l2'.
    epsilon: radius in pixel range 0-1.
    init: 'zero'; 'uniform' in the ball; 'gaussian': 0.001 N(0, I), the start
      of TRADES and RSLAD.
  """
  if init == 'zero':
    return image
  shape = image.shape[1:]
  normal = jax.vmap(lambda k: jax.random.normal(k, shape, image.dtype))
  if init == 'gaussian':
    delta = 0.001 * normal(rng)
  elif norm == 'linf':
    uniform = jax.vmap(lambda k: jax.random.uniform(k, shape, image.dtype))
    delta = epsilon * (2.0 * uniform(rng) - 1.0)
  else:
    radius = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 1)))
    share = radius(rng) ** (1.0 / image[0].size)
    delta = direction(normal(rng), 'l2') * epsilon * share[:, None, None, None]
  return project(image + delta, image, norm, epsilon)


def ascent(
  rng: Array,
  loss_fn: LossFn,
  image: Array,
  *,
  norm: str,
  epsilon: float,
  step_size: float,
  num_steps: int,
  init: str,
) -> Ascent:
  """Ascends `loss_fn` from `image` inside the ball (PGD, Madry et al. 2018).

  x_{t+1} = project(x_t + step_size direction(grad loss(x_t))), with the sign
  as direction in l_inf and grad / |grad| in l_2.

  Args:
    rng: [B] keys, one per image.
    loss_fn: image [B, H, W, C] -> loss [B]; each example's loss may depend on
      its own image only, or on the whole batch (batch statistics).
    image: [B, H, W, C] float32 in [0, 1].
    norm: 'linf' or 'l2'.
    epsilon: radius in pixel range 0-1.
    step_size: length of a step, in the unit of epsilon.
    num_steps: number of steps, >= 1.
    init: 'zero', 'uniform' or 'gaussian', see `start`.

  Returns:
    The last iterate and the whole path; no gradient flows into either.

  Raises:
    UserError: an unknown norm.

  Examples:
    >>> away = lambda x: jnp.sum((x - image) ** 2, axis=(1, 2, 3))
    >>> result = ascent(rng, away, image, norm='linf', epsilon=0.1,
    ...                 step_size=0.05, num_steps=3, init='uniform')
    >>> result.path.shape
    (3, 4, 8, 8, 3)
  """
  check_norm(norm, ('linf', 'l2'))
  gradient = jax.grad(lambda x: jnp.sum(loss_fn(x)))

  def step(adv, _):
    adv = adv + step_size * direction(gradient(adv), norm)
    adv = project(adv, image, norm, epsilon)
    return adv, adv

  first = start(rng, image, norm, epsilon, init)
  adv, path = jax.lax.scan(step, first, None, length=num_steps)
  return jax.lax.stop_gradient(Ascent(adv, path))
