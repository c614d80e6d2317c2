"""All that touches devices: the only `pmap` of the project.

Moving to `shard_map` later touches this file only.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

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


def pmap_rows(function: Callable) -> Callable:
  """Maps (shared, rows) -> per-row values over this process's devices.

  `shared` must hold an array: JAX 0.10 mistakes the axes of an empty argument.
  """
  return jax.pmap(
    function,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=0,
    devices=jax.local_devices(),
  )


def num_devices() -> int:
  """Returns how many devices this process has."""
  return jax.local_device_count()


def place() -> dict[str, int]:
  """Returns which part of each global batch is this process's."""
  return {
    'process_index': jax.process_index(),
    'process_count': jax.process_count(),
    'num_local_devices': jax.local_device_count(),
  }


def prefetch(batches: Iterable[dict], depth: int = 2) -> Iterator[dict]:
  """Yields batches that are on the devices, `depth` ahead of their step."""
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  ahead = deque()
  for batch in batches:
    ahead.append(jax.device_put(batch, layout))
    if len(ahead) > depth:
      yield ahead.popleft()
  yield from ahead


def replicate(tree: PyTree, devices: list | None = None) -> PyTree:
  """Copies a tree onto the local devices in the layout of `pmap_step`.

  A copy, because the step donates what it is given and would delete the
  caller's arrays.

  Args:
    tree: what to copy.
    devices: None for the layout of `pmap_step`, which all processes must ask
      for together; `jax.local_devices()` for that of `pmap_rows`.
  """
  if not jax.tree.leaves(tree):
    return tree  # several processes cannot map to nothing
  copy = jax.pmap(
    lambda tree, _: jax.tree.map(jnp.copy, tree),
    axis_name=AXIS,  # another name is another layout: the step would recompile
    in_axes=(None, 0),
    out_axes=None,
    devices=devices,
  )
  return copy(tree, np.zeros(jax.local_device_count()))


def to_host(tree: PyTree) -> PyTree:
  """Returns the tree as NumPy arrays, from the first local device."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
