"""MobileNetV2, Sandler et al. 2018, arXiv:1801.04381, in its CIFAR form.

The form common in CIFAR code: stem and second stage of stride 1, relu in place
of relu6, the expansion kept where its factor is 1, and a 1x1 shortcut where the
channels change at stride 1. It has the published number of parameters; it was
not compared with the files of any paper.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jax_robust_kd.core import Array
from jax_robust_kd.models.layers import (
  Features,
  Layers,
  classify,
  make_layers,
  normalize,
)

# Each stage ends where the resolution is about to halve, so that stages match
# a ResNet's: (expansion, features, blocks, stride of the first) per group.
_STAGES = (
  ((1, 16, 1, 1), (6, 24, 2, 1)),
  ((6, 32, 3, 2),),
  ((6, 64, 4, 2), (6, 96, 3, 1)),
  ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV2(nn.Module):
  """A MobileNetV2 for small images.

  Features: stem, stage1..4, pooled.

  Attributes:
    num_classes: K, >= 1.
    dtype: dtype of the computation; weights, statistics and logits are float32.
    bn_axis_name: device axis of synchronised BatchNorm, or None.
    mean: subtracted per channel, in [0, 1]; () for none.
    std: divides per channel, > 0; () for none.
    activation: 'relu', 'relu6' or 'swish'.
    padding: 'symmetric' (PyTorch) or 'same' (TensorFlow).

  Returns:
    Logits [B, K] float32 and the features by name.

  Raises:
    UserError: an unknown activation or padding.

  Examples:
    >>> import jax
    >>> from jax_robust_kd import models
    >>> model = models.MobileNetV2(10)
    >>> variables = jax.eval_shape(
    ...   lambda: model.init(
    ...     jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)), train=False
    ...   )
    ... )
    >>> models.num_params(variables['params'])
    2296922

  References:
    Sandler et al. 2018, arXiv 1801.04381.
  """

  num_classes: int
  dtype: Any = jnp.float32
  bn_axis_name: str | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  activation: str = 'relu'
  padding: str = 'symmetric'

  @nn.compact
  def __call__(self, image: Array, train: bool) -> tuple[Array, Features]:
    layers = make_layers(
      train, self.dtype, self.bn_axis_name, self.activation, self.padding
    )
    x = normalize(image, self.mean, self.std)
    x = layers.conv(32, name='stem')(x)
    x = layers.act(layers.norm(name='stem_norm')(x))
    features = {'stem': x}
    for stage, groups in enumerate(_STAGES, 1):
      blocks = [
        (expansion, width, stride if i == 0 else 1)
        for expansion, width, size, stride in groups
        for i in range(size)
      ]
      for i, block in enumerate(blocks, 1):
        x = _Block(layers, *block, name=f'stage{stage}_block{i}')(x)
      features[f'stage{stage}'] = x
    x = layers.conv(1280, 1, name='final_conv')(x)
    x = layers.act(layers.norm(name='final_norm')(x))
    logits, features['pooled'] = classify(x, self.num_classes)
    return logits, features


class _Block(nn.Module):
  """1x1 wider, 3x3 per channel, 1x1 narrower, plus x at stride 1."""

  layers: Layers
  expansion: int
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv, norm, act = self.layers
    inner = x.shape[-1] * self.expansion
    y = act(norm(name='norm1')(conv(inner, 1, name='conv1')(x)))
    y = conv(inner, 3, self.stride, depthwise=True, name='conv2')(y)
    y = act(norm(name='norm2')(y))
    y = norm(name='norm3')(conv(self.width, 1, name='conv3')(y))
    if self.stride != 1:
      return y
    if x.shape[-1] != self.width:
      x = conv(self.width, 1, name='shortcut')(x)
      x = norm(name='shortcut_norm')(x)
    return y + x
