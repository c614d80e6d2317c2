"""Networks as StableHLO: any batch size, on CPUs, GPUs and TPUs."""

from collections.abc import Callable

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import Array, LogitsFn, UserError
from jax_robust_kd.runtime import target

PLATFORMS = ('cpu', 'cuda', 'tpu')


def to_stablehlo(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> bytes:
  """Serializes a network as `jax.export` does, with a symbolic batch size.

  Args:
    logits_fn: [B, H, W, C] float32 in [0, 1] -> [B, K], with its weights.
    image_shape: (H, W, C).

  Raises:
    UserError: flatbuffers is not installed.
  """
  try:
    import flatbuffers  # noqa: F401  # type: ignore[import-not-found]
  except ImportError:
    raise UserError(
      'an export to stablehlo needs flatbuffers: pip install '
      '"jax_robust_kd[stablehlo]"'
    ) from None

  def call(image: Array) -> Array:  # a new function, so that it is traced
    return logits_fn(image)

  (batch,) = export.symbolic_shape('batch')
  shape = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
  with target.compile_for('portable'):
    exported = export.export(jax.jit(call), platforms=PLATFORMS)(shape)
  return bytes(exported.serialize())


def make_runner(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
  """Returns images [N, H, W, C] -> logits [N, K]."""
  call = jax.jit(export.deserialize(bytearray(content)).call)
  return lambda images: np.asarray(call(images.astype(np.float32)))
