"""The few layers that every model is made of.

Initial weights: convolutions He-normal (fan out, as in the WideResNets of the
TRADES code; fan in when depthwise), BatchNorm 1 and 0, the classifier uniform
in +-1/sqrt(fan in) with bias 0. PyTorch's default convolution (uniform, 0.4 of
this deviation) is not imitated: BatchNorm follows nearly every one.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, UserError
from jax_robust_kd.models.conv import conv_general

Features = dict[str, Array]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'relu': jax.nn.relu,
  'relu6': jax.nn.relu6,
  'swish': jax.nn.silu,
}
_EPSILON = 1e-5
_HE_OUT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_HE_IN = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
_LINEAR = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Layers(NamedTuple):
  """The layers of one model, with what all of them share already filled in."""

  conv: Callable[..., nn.Module]  # (features, kernel=3, stride=1, name=...)
  norm: Callable[..., nn.Module]  # (name=...)
  act: Callable[[Array], Array]


def make_layers(
  train: bool,
  dtype: Any,
  bn_axis_name: str | None,
  activation: str,
  padding: str,
) -> Layers:
  """Fills in what all layers of a model share.

  Args:
    train: whether BatchNorm uses the batch (and moves its averages).
    dtype: of the computation; weights and statistics are float32.
    bn_axis_name: device axis over which BatchNorm averages, or None.
    activation: a key of ACTIVATIONS.
    padding: 'symmetric' or 'same', see conv().

  Raises:
    UserError: for an unknown activation or padding.
  """
  if activation not in ACTIVATIONS:
    raise UserError(
      f'activation {activation!r} is unknown: choose one of '
      f'{sorted(ACTIVATIONS)}'
    )
  if padding not in ('symmetric', 'same'):
    raise UserError(
      f"padding {padding!r} is unknown: choose 'symmetric' or 'same'"
    )
  return Layers(
    functools.partial(conv, padding=padding, dtype=dtype),
    functools.partial(BatchNorm, train, bn_axis_name),
    ACTIVATIONS[activation],
  )


class BatchNorm(nn.Module):
  """Batch normalization, Ioffe and Szegedy 2015, arXiv:1502.03167.

  What Flax's computes with use_fast_variance=False (E[x^2] - E[x]^2 cancels),
  with the gradient written by hand: one pass over the activations instead of
  three, and none of them stored besides the input. Running averages move by
  0.1 a call and hold the biased variance (PyTorch holds the unbiased one).

  Attributes:
    train: whether the batch normalizes, or the running averages.
    axis_name: device axis over which to average, or None.
  """

  train: bool
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    if not self.train:
      return _affine(x, scale, bias, mean.value, var.value)
    y, now_mean, now_var = batch_normalize(self.axis_name, x, scale, bias)
    if not self.is_initializing():
      mean.value = 0.9 * mean.value + 0.1 * now_mean
      var.value = 0.9 * var.value + 0.1 * now_var
    return y


def _affine(x: Array, scale: Array, bias: Array, mean: Array, var: Array):
  """(x - mean) / sqrt(var) scale + bias in float32, in the dtype of x."""
  factor = scale * jax.lax.rsqrt(var + _EPSILON)
  return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


def _mean(axis_name: str | None, *values: Array) -> list[Array]:
  """Means over all but the last axis, over the devices too, in float32."""
  axes = tuple(range(values[0].ndim - 1))
  means = [jnp.mean(v, axis=axes, dtype=jnp.float32) for v in values]
  return jax.lax.pmean(means, axis_name) if axis_name else means


def _batch_normalize(
  axis_name: str | None, x: Array, scale: Array, bias: Array
) -> tuple[Array, Array, Array]:
  """Normalizes by the batch.

  Args:
    axis_name: device axis over which to average, or None.
    x: [..., C] in any float dtype.
    scale: [C] float32.
    bias: [C] float32.

  Returns:
    y [..., C] in the dtype of x, mean and biased variance [C] float32.
  """
  (mean,) = _mean(axis_name, x)
  (var,) = _mean(axis_name, jnp.square(x.astype(jnp.float32) - mean))
  return _affine(x, scale, bias, mean, var), mean, var


def _batch_normalize_fwd(axis_name, x, scale, bias):
  y, mean, var = batch_normalize(axis_name, x, scale, bias)
  return (y, mean, var), (x, scale, mean, var)


def _batch_normalize_bwd(axis_name, kept, cotangents):
  """dx is affine in g and x per channel: one pass after two reductions."""
  x, scale, mean, var = kept
  g, of_mean, of_var = cotangents
  count = math.prod(x.shape[:-1])
  g = g.astype(jnp.float32)
  centered = x.astype(jnp.float32) - mean
  inverse = jax.lax.rsqrt(var + _EPSILON)
  local = _mean(None, g, g * centered)
  if axis_name:
    mean_g, mean_gx, of_mean, of_var = jax.lax.pmean(
      (*local, of_mean, of_var), axis_name
    )
  else:
    mean_g, mean_gx = local
  slope = 2 * of_var / count - scale * inverse**3 * mean_gx
  dx = scale * inverse * (g - mean_g) + (slope * centered + of_mean / count)
  return (dx.astype(x.dtype), count * inverse * local[1], count * local[0])


batch_normalize = jax.custom_vjp(_batch_normalize, nondiff_argnums=(0,))
batch_normalize.defvjp(_batch_normalize_fwd, _batch_normalize_bwd)


def conv(
  features: int,
  kernel: int = 3,
  stride: int = 1,
  depthwise: bool = False,
  padding: str = 'symmetric',
  dtype: Any = jnp.float32,
  name: str | None = None,
) -> nn.Conv:
  """A convolution without bias, square and with equal strides.

  Args:
    features: output channels.
    kernel: side of the kernel.
    stride: of both axes.
    depthwise: one kernel per channel; then `features` are the input's.
    padding: 'symmetric' is PyTorch's, (kernel - 1) / 2 on every side; 'same' is
      TensorFlow's and DeepMind's, where stride 2 on an even side pads (0, 1).
      A checkpoint loaded with the wrong one keeps its predictions and loses
      its accuracy by a little: nothing else shows it.
    dtype: of the computation.
    name: of the layer.
  """
  side = (kernel - 1) // 2
  return nn.Conv(
    features,
    (kernel, kernel),
    stride,
    'SAME' if padding == 'same' else ((side, side),) * 2,
    feature_group_count=features if depthwise else 1,
    use_bias=False,
    dtype=dtype,
    kernel_init=_HE_IN if depthwise else _HE_OUT,
    conv_general_dilated=conv_general,
    name=name,
  )


def normalize(image: Array, mean: tuple, std: tuple) -> Array:
  """(image - mean) / std by channel; the image itself where both are empty.

  Raises:
    UserError: where the number of entries is not that of the channels.
  """
  if not mean and not std:
    return image
  if not len(mean) == len(std) == image.shape[-1]:
    raise UserError(
      f'mean {mean} and std {std} need one entry for each of the '
      f'{image.shape[-1]} channels of the images'
    )
  return (image - jnp.asarray(mean)) / jnp.asarray(std)


def classify(x: Array, num_classes: int) -> tuple[Array, Array]:
  """Averages over all pixels, whatever their number, and classifies.

  Both in float32 even when the model computes in bfloat16. Call it inside a
  compact method: the layer is named 'head'.

  Returns:
    logits [B, K] and the pooled features [B, d].
  """
  pooled = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
  head = nn.Dense(num_classes, kernel_init=_LINEAR, name='head')
  return head(pooled), pooled
