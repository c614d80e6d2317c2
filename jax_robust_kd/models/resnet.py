"""Residual networks for small images, He et al. 2015, arXiv:1512.03385.

ResNet-18/34/50 are ImageNet's, by default with a 3x3 stem of stride 1 and no
max pooling (the CIFAR form that the papers on robust distillation use);
ResNet-20/32/56 are the paper's own for CIFAR (section 4.2).
"""

from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from jax_robust_kd.core import Array, UserError
from jax_robust_kd.models.layers import (
  Features,
  Layers,
  classify,
  make_layers,
  normalize,
)

# depth -> (blocks per stage, expansion of the bottleneck or 1)
_DEPTHS = {
  18: ((2, 2, 2, 2), 1),
  34: ((3, 4, 6, 3), 1),
  50: ((3, 4, 6, 3), 4),
}


class ResNet(nn.Module):
  """A ResNet-18, 34 or 50.

  Features: stem, stage1..4, pooled.

  Attributes:
    num_classes: K, >= 1.
    depth: 18, 34 or 50.
    width: channels of the first stage.
    dtype: dtype of the computation; weights, statistics and logits are float32.
    bn_axis_name: device axis of synchronised BatchNorm, or None.
    mean: subtracted per channel, in [0, 1]; () for none.
    std: divides per channel, > 0; () for none.
    activation: 'relu', 'relu6' or 'swish'.
    padding: 'symmetric' (PyTorch) or 'same' (TensorFlow).
    shortcut_kernel: side of the shortcut's kernel where the shape changes.
    stem: '3x3' for small images, or '7x7' for ImageNet: stride 2, then a
      maximum over 3x3 pixels of stride 2.

  Returns:
    Logits [B, K] float32 and the features by name.

  Raises:
    UserError: an unknown depth, stem, activation or padding.

  Examples:
    >>> import jax
    >>> from jax_robust_kd import models
    >>> model = models.ResNet(10, depth=18)
    >>> variables = jax.eval_shape(
    ...   lambda: model.init(
    ...     jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)), train=False
    ...   )
    ... )
    >>> models.num_params(variables['params'])
    11173962

  References:
    He et al. 2015, arXiv 1512.03385.
  """

  num_classes: int
  depth: int = 18
  width: int = 64
  dtype: Any = jnp.float32
  bn_axis_name: str | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  activation: str = 'relu'
  padding: str = 'symmetric'
  shortcut_kernel: int = 1
  stem: str = '3x3'

  @nn.compact
  def __call__(self, image: Array, train: bool) -> tuple[Array, Features]:
    if self.depth not in _DEPTHS:
      raise UserError(
        f'depth {self.depth} of a resnet is unknown: choose one of '
        f'{sorted(_DEPTHS)}, or small_resnet for 6n + 2'
      )
    if self.stem not in ('3x3', '7x7'):
      raise UserError(f"stem {self.stem!r} is unknown: choose '3x3' or '7x7'")
    layers = make_layers(
      train, self.dtype, self.bn_axis_name, self.activation, self.padding
    )
    sizes, expansion = _DEPTHS[self.depth]
    x = normalize(image, self.mean, self.std)
    large = self.stem == '7x7'
    kernel, stride = (7, 2) if large else (3, 1)
    x = layers.conv(self.width, kernel, stride, name='stem')(x)
    x = layers.act(layers.norm(name='stem_norm')(x))
    if large:
      x = nn.max_pool(x, (3, 3), (2, 2), cast(Any, ((1, 1), (1, 1))))
    features = {'stem': x}
    for stage, size in enumerate(sizes):
      for block in range(size):
        x = _Block(
          layers,
          self.width * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          expansion=expansion,
          shortcut_kernel=self.shortcut_kernel,
          name=f'stage{stage + 1}_block{block + 1}',
        )(x)
      features[f'stage{stage + 1}'] = x
    logits, features['pooled'] = classify(x, self.num_classes)
    return logits, features


class SmallResNet(nn.Module):
  """A ResNet of 6n + 2 layers for CIFAR, with shortcuts free of parameters.

  Features: stem, stage1..3, pooled.

  Attributes:
    num_classes: K, >= 1.
    depth: 6n + 2 (8, 14, 20, 32, 56...).
    width: channels of the first stage; the paper has 16.
    stem_stride: of the first convolution; 2 costs a quarter, for small budgets.
    dtype: dtype of the computation; weights, statistics and logits are float32.
    bn_axis_name: device axis of synchronised BatchNorm, or None.
    mean: subtracted per channel, in [0, 1]; () for none.
    std: divides per channel, > 0; () for none.
    activation: 'relu', 'relu6' or 'swish'.
    padding: 'symmetric' (PyTorch) or 'same' (TensorFlow).

  Returns:
    Logits [B, K] float32 and the features by name.

  Raises:
    UserError: a depth that is not 6n + 2, or an unknown activation or
      padding.

  Examples:
    >>> import jax
    >>> from jax_robust_kd import models
    >>> model = models.SmallResNet(10, depth=20)
    >>> variables = jax.eval_shape(
    ...   lambda: model.init(
    ...     jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)), train=False
    ...   )
    ... )
    >>> models.num_params(variables['params'])
    269722

  References:
    He et al. 2015, arXiv 1512.03385, section 4.2.
  """

  num_classes: int
  depth: int = 20
  width: int = 16
  stem_stride: int = 1
  dtype: Any = jnp.float32
  bn_axis_name: str | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  activation: str = 'relu'
  padding: str = 'symmetric'

  @nn.compact
  def __call__(self, image: Array, train: bool) -> tuple[Array, Features]:
    if self.depth < 8 or self.depth % 6 != 2:
      raise UserError(
        f'depth {self.depth} of a small_resnet is not 6n + 2: choose 8, 14, '
        '20, 32, 56...'
      )
    layers = make_layers(
      train, self.dtype, self.bn_axis_name, self.activation, self.padding
    )
    x = normalize(image, self.mean, self.std)
    x = layers.conv(self.width, stride=self.stem_stride, name='stem')(x)
    x = layers.act(layers.norm(name='stem_norm')(x))
    features = {'stem': x}
    for stage in range(3):
      for block in range((self.depth - 2) // 6):
        x = _Block(
          layers,
          self.width * 2**stage,
          stride=2 if stage > 0 and block == 0 else 1,
          shortcut_kernel=0,
          name=f'stage{stage + 1}_block{block + 1}',
        )(x)
      features[f'stage{stage + 1}'] = x
    logits, features['pooled'] = classify(x, self.num_classes)
    return logits, features


class _Block(nn.Module):
  """Two 3x3 convolutions, or 1x1, 3x3, 1x1 where expansion > 1, plus x."""

  layers: Layers
  width: int
  stride: int = 1
  expansion: int = 1
  shortcut_kernel: int = 1  # 0: no parameters

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv, norm, act = self.layers
    width, out = self.width, self.width * self.expansion
    if self.expansion == 1:
      convs = [(out, 3, self.stride), (out, 3, 1)]
    else:
      convs = [(width, 1, 1), (width, 3, self.stride), (out, 1, 1)]
    y = x
    for i, (features, kernel, stride) in enumerate(convs, 1):
      y = conv(features, kernel, stride, name=f'conv{i}')(y)
      y = norm(name=f'norm{i}')(y)
      y = act(y) if i < len(convs) else y
    if x.shape != y.shape and self.shortcut_kernel == 0:
      x = _subsample(x, self.stride, out)
    elif x.shape != y.shape:
      kernel = self.shortcut_kernel
      x = conv(out, kernel, self.stride, name='shortcut')(x)
      x = norm(name='shortcut_norm')(x)
    return act(y + x)


def _subsample(x: Array, stride: int, features: int) -> Array:
  """Every stride-th pixel, with zero channels before and after (option A)."""
  extra = features - x.shape[-1]
  sides = (extra // 2, extra - extra // 2)
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0),) * 3 + (sides,))
