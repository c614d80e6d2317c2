"""All that touches devices: the only `pmap` of the project.

Moving to `shard_map` later touches this file only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import AXIS, PyTree


def pmap_step(step: Callable) -> Callable:
  """Runs a training step on every local device.

  The state and the teacher keep their natural shapes on every device; only the
  batch has a leading device dimension. The state is donated, so it must come
  from `replicate` or from the step itself.

  Args:
    step: (state, teacher_variables, batch) -> (state, metrics); everything it
      returns must be averaged over AXIS.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, None, 0),
    out_axes=(None, None),
    donate_argnums=0,
  )


def pmap_eval(function: Callable) -> Callable:
  """Maps (variables, batch) -> per-image values over the local devices."""
  return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), out_axes=0)


def replicate(tree: PyTree) -> PyTree:
  """Copies a tree onto the local devices in the layout of `pmap_step`.

  A copy, because the step donates what it is given and would delete the
  caller's arrays.
  """
  copy = jax.pmap(
    lambda tree, _: jax.tree.map(jnp.copy, tree),
    axis_name=AXIS,  # another name is another layout: the step would recompile
    in_axes=(None, 0),
    out_axes=None,
  )
  return copy(tree, np.zeros(jax.local_device_count()))


def to_host(tree: PyTree) -> PyTree:
  """Returns the tree as NumPy arrays, from the first local device."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
