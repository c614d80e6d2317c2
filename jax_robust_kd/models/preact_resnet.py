"""Pre-activation ResNet-18, He et al. 2016, arXiv:1603.05027, in three forms.

Robust checkpoints come in three forms that differ in four places:

  form           shortcut from      shortcut  before the head  stride-2 padding
  V1             the block's input  1x1       nothing          symmetric
  V2             the activated one  1x1       norm, act        symmetric
  DeepMind's     the block's input  3x3       norm, act        same (and swish)

V1 is Wong's and Andriushchenko's, V2 Rice's and Kireev's, the last one Gowal's
(arXiv:2010.03593), Rebuffi's and Rade's.
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


class PreActResNet(nn.Module):
  """A pre-activation ResNet-18.

  Features: stem, stage1..4 (before the next norm), pooled.

  Attributes:
    num_classes: K, >= 1.
    width: channels of the first stage.
    dtype: dtype of the computation; weights, statistics and logits are float32.
    bn_axis_name: device axis of synchronised BatchNorm, or None.
    mean: subtracted per channel, in [0, 1]; () for none.
    std: divides per channel, > 0; () for none.
    activation: 'relu', 'relu6' or 'swish'.
    padding: 'symmetric' (PyTorch) or 'same' (DeepMind).
    shortcut_kernel: side of the shortcut's kernel where the shape changes.
    shortcut_activated: whether that shortcut starts after norm and activation.
    final_norm: whether norm and activation come before the pooling.

  Returns:
    Logits [B, K] float32 and the features by name.

  Raises:
    UserError: an unknown activation or padding.

  Examples:
    >>> import jax
    >>> from jax_robust_kd import models
    >>> model = models.PreActResNet(10)
    >>> variables = jax.eval_shape(
    ...   lambda: model.init(
    ...     jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)), train=False
    ...   )
    ... )
    >>> models.num_params(variables['params'])
    11171146

  References:
    He et al. 2016, arXiv 1603.05027.
  """

  num_classes: int
  width: int = 64
  dtype: Any = jnp.float32
  bn_axis_name: str | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  activation: str = 'relu'
  padding: str = 'symmetric'
  shortcut_kernel: int = 1
  shortcut_activated: bool = False
  final_norm: bool = False

  @nn.compact
  def __call__(self, image: Array, train: bool) -> tuple[Array, Features]:
    layers = make_layers(
      train, self.dtype, self.bn_axis_name, self.activation, self.padding
    )
    x = normalize(image, self.mean, self.std)
    x = layers.conv(self.width, name='stem')(x)
    features = {'stem': x}
    for stage in range(4):
      for block in range(2):
        x = _Block(
          layers,
          self.width * 2**stage,
          2 if stage > 0 and block == 0 else 1,
          self.shortcut_kernel,
          self.shortcut_activated,
          name=f'stage{stage + 1}_block{block + 1}',
        )(x)
      features[f'stage{stage + 1}'] = x
    if self.final_norm:
      x = layers.act(layers.norm(name='final_norm')(x))
    logits, features['pooled'] = classify(x, self.num_classes)
    return logits, features


class _Block(nn.Module):
  """norm, act, conv, norm, act, conv, plus x."""

  layers: Layers
  width: int
  stride: int
  shortcut_kernel: int
  shortcut_activated: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv, norm, act = self.layers
    y = act(norm(name='norm1')(x))
    if self.stride != 1 or x.shape[-1] != self.width:
      start = y if self.shortcut_activated else x
      x = conv(self.width, self.shortcut_kernel, self.stride, name='shortcut')(
        start
      )
    y = conv(self.width, 3, self.stride, name='conv1')(y)
    y = act(norm(name='norm2')(y))
    return x + conv(self.width, 3, name='conv2')(y)
