"""Ways to take the gradient of the outer loss; they go with every method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_robust_kd.core import AXIS, Array, LossOutput, PyTree

GradFn = Callable[[PyTree], tuple[PyTree, LossOutput]]


def plain(
  grad_fn: GradFn, params: PyTree, step: Array
) -> tuple[PyTree, LossOutput]:
  """The gradient at the weights themselves."""
  del step
  return grad_fn(params)


def awp(gamma: float, warmup_steps: int = 0) -> Callable:
  """Adversarial weight perturbation. Wu et al., NeurIPS 2020, arXiv 2004.05884.

  The gradient is taken at w + v, where v goes up the loss by one step whose
  length is gamma ||w|| in each kernel of the student (Eq. 8 and 10 with one
  step); heads and a peer stay. Weight decay pulls at w; in the official code it
  pulls at w + v. The running averages are those of the second pass, as there.

  Args:
    gamma: relative length; 0.01 for PGD-AT, 0.005 for TRADES.
    warmup_steps: without perturbation.

  Returns:
    (grad_fn, params, step) -> (grads, LossOutput).
  """

  def gradient(grad_fn, params, step):
    up = jax.lax.pmean(grad_fn(params)[0]['student'], AXIS)
    size = jnp.where(step < warmup_steps, 0.0, gamma)

    def move(w, g):
      if w.ndim < 2:
        return w
      return w + size * g * _norm(w) / (_norm(g) + 1e-12)

    moved = jax.tree.map(move, params['student'], up)
    return grad_fn({**params, 'student': moved})

  return gradient


def _norm(x: Array) -> Array:
  return jnp.sqrt(jnp.sum(jnp.square(x)))
