"""Any JAX function as a network: images to logits, and no features.

A module of Flax NNX or Equinox is called as it is. Where the function is a
pytree, as these and `jax.tree_util.Partial` are, its arrays are arguments of
compiled programs; what a plain function closes over is compiled in.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import Array, Forward, Output, PyTree, UserError

_MISSING = (
  'the teacher is a function that returns logits alone, and the method asks '
  'for its features: choose a method of logits, such as rslad, or a teacher '
  'with a checkpoint'
)


class NoFeatures(dict):
  """The features of a network that has none: to ask for one is refused."""

  def _refuse(self, *args):
    raise UserError(_MISSING)

  __missing__ = __iter__ = __contains__ = _refuse  # type: ignore[assignment]
  keys = items = values = get = _refuse  # type: ignore[assignment]


jax.tree_util.register_pytree_node(
  NoFeatures, lambda features: ((), None), lambda aux, leaves: NoFeatures()
)


def wrap(
  field: str, function: Callable[[Array], Array], shape: tuple[int, ...]
) -> tuple[Forward, PyTree, int]:
  """Wraps a function as a network.

  Args:
    field: the setting that names it, for messages.
    function: [B, H, W, C] float32 in [0, 1] -> logits [B, K].
    shape: (H, W, C).

  Returns:
    (variables, image, mode) -> Output, its variables, and K.

  Raises:
    UserError: it cannot be called so, returns something else, or an image's
      logits depend on the images beside it.
  """
  if not callable(function):
    raise UserError(f'{field} is a {type(function).__name__}, not a function')
  leaves, structure = jax.tree.flatten(function)
  is_weight = [_is_weight(leaf) for leaf in leaves]
  weights = [w for w, own in zip(leaves, is_weight, strict=True) if own]

  def forward(variables: PyTree, image: Array, mode: str) -> Output:
    del mode  # it has one
    given = iter(variables['params'])
    filled = [
      next(given) if own else leaf
      for leaf, own in zip(leaves, is_weight, strict=True)
    ]
    logits = jax.tree.unflatten(structure, filled)(image)
    return Output(jnp.asarray(logits, jnp.float32), NoFeatures(), {})

  variables = {'params': weights, 'batch_stats': {}}
  image = np.random.default_rng(0).random((2, *shape), np.float32)
  try:
    pair = np.asarray(jax.jit(forward, static_argnums=2)(variables, image, ''
                      ).logits)  # fmt: skip
    one = jax.jit(forward, static_argnums=2)(variables, image[:1], '').logits
  except Exception as error:  # whatever a function of the user's may raise
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise UserError(
      f'{field} cannot be called on images of shape {(2, *shape)}: {reason}'
    ) from error
  if pair.ndim != 2 or len(pair) != 2:
    raise UserError(
      f'{field} returns an array of shape {pair.shape} for 2 images; it must '
      'return logits, [2, K]'
    )
  if not np.allclose(pair[:1], one, rtol=0.02, atol=0.02 * np.abs(pair).max()):
    raise UserError(
      f'{field}: the logits of an image depend on the images beside it; put '
      'the network into evaluation mode first, such as by model.eval()'
    )
  return forward, variables, pair.shape[1]


def _is_weight(leaf: Any) -> bool:
  is_array = isinstance(leaf, (jax.Array, np.ndarray))
  return is_array and jnp.issubdtype(leaf.dtype, jnp.number)
