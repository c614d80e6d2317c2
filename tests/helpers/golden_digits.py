"""The network behind AutoAttack's reference vectors, in plain JAX.

Convolution to 32 channels, BatchNorm, ReLU; convolution with stride 2 to 64,
BatchNorm, ReLU; global mean; linear 10. Weights and vectors are in golden/; its
README says where they come from.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.models.conv import conv_general

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden/autoattack_digits_std.npz'
WEIGHTS = 'std/weights/'


@functools.cache
def load() -> dict[str, np.ndarray]:
  """Returns the reference vectors; images are turned from NCHW to NHWC."""
  with np.load(GOLDEN) as stored:
    vectors = {key: stored[key] for key in stored.files}
  return {
    key: value
    if key.startswith(WEIGHTS) or value.ndim != 4
    else np.moveaxis(value, 1, -1)
    for key, value in vectors.items()
  }


def _block(image, number, stride):
  """Convolution, BatchNorm with its running averages, ReLU."""
  weights = load()
  kernel = weights[f'{WEIGHTS}conv{number}.weight'].transpose(2, 3, 1, 0)
  scale, bias, mean, var = (
    weights[f'{WEIGHTS}bn{number}.{name}']
    for name in ('weight', 'bias', 'running_mean', 'running_var')
  )
  x = conv_general(
      image, jnp.asarray(kernel), (stride, stride), ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
  x = (x - mean) / np.sqrt(var + np.float32(1e-5)) * scale + bias
  return jax.nn.relu(x)


def logits_fn(image: jax.Array) -> jax.Array:
  """Returns the logits [B, 10] of images [B, 8, 8, 1] in [0, 1]."""
  weights = load()
  x = _block(_block(image, 1, 1), 2, 2)
  pooled = jnp.mean(x, axis=(1, 2))
  kernel = weights[WEIGHTS + 'fc.weight'].T
  return pooled @ kernel + weights[WEIGHTS + 'fc.bias']
