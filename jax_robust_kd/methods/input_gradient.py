"""The gradient of a network's answer by its input, to be matched."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Output


def input_gradient(
  network: Callable[[Array], Output],
  image: Array,
  value_fn: Callable[[Array], Array],
) -> tuple[Array, Output]:
  """Differentiates `value_fn`, summed over the batch, by the images.

  Where BatchNorm uses the batch, an image moves the values of its neighbours
  too, and that is part of its gradient, as in PyTorch.

  Args:
    network: image -> Output, such as `ctx.student`.
    image: [B, H, W, C].
    value_fn: logits [B, K] -> [B].

  Returns:
    [B, H, W, C] the gradients, which can be differentiated by the weights, and
    the Output of the pass.
  """

  def total(x):
    out = network(x)
    return jnp.sum(value_fn(out.logits)), out

  return jax.grad(total, has_aux=True)(image)
