"""Wide residual networks, Zagoruyko and Komodakis 2016, arXiv:1605.07146.

Two forms with the same weights and different results: the one of the TRADES
code (most PyTorch checkpoints: relu, symmetric padding) and DeepMind's
(arXiv:2010.03593: swish, 'same' padding). Loading one into the other costs 7 to
14 % in the logits and leaves most predictions alone, so it goes unnoticed.
"""

from typing import Any

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


class WideResNet(nn.Module):
  """A wide ResNet, WRN-depth-width.

  Features: stem, stage1..3 (before the next norm), pooled.

  Attributes:
    num_classes: K, >= 1.
    depth: 6n + 4 (10, 16, 28, 34, 70...).
    width: factor on the channels 16, 32, 64 of the three stages.
    dtype: dtype of the computation; weights, statistics and logits are float32.
    bn_axis_name: device axis of synchronised BatchNorm, or None.
    mean: subtracted per channel, in [0, 1]; () for none.
    std: divides per channel, > 0; () for none.
    activation: 'relu', 'relu6' or 'swish'.
    padding: 'symmetric' (PyTorch) or 'same' (DeepMind).
    shortcut_kernel: side of the shortcut's kernel where the shape changes.

  Returns:
    Logits [B, K] float32 and the features by name.

  Raises:
    UserError: a depth that is not 6n + 4, or an unknown activation or
      padding.

  Examples:
    >>> import jax
    >>> from jax_robust_kd import models
    >>> model = models.WideResNet(10, depth=28, width=10)
    >>> variables = jax.eval_shape(
    ...   lambda: model.init(
    ...     jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)), train=False
    ...   )
    ... )
    >>> models.num_params(variables['params'])
    36479194

  References:
    Zagoruyko and Komodakis 2016, arXiv 1605.07146.
  """

  num_classes: int
  depth: int = 28
  width: int = 10
  dtype: Any = jnp.float32
  bn_axis_name: str | None = None
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  activation: str = 'relu'
  padding: str = 'symmetric'
  shortcut_kernel: int = 1

  @nn.compact
  def __call__(self, image: Array, train: bool) -> tuple[Array, Features]:
    if self.depth < 10 or self.depth % 6 != 4:
      raise UserError(
        f'depth {self.depth} of a wide_resnet is not 6n + 4: choose 10, 16, '
        '28, 34, 70...'
      )
    layers = make_layers(
      train, self.dtype, self.bn_axis_name, self.activation, self.padding
    )
    x = normalize(image, self.mean, self.std)
    x = layers.conv(16, name='stem')(x)
    features = {'stem': x}
    for stage in range(3):
      for block in range((self.depth - 4) // 6):
        x = _Block(
          layers,
          16 * self.width * 2**stage,
          2 if stage > 0 and block == 0 else 1,
          self.shortcut_kernel,
          name=f'stage{stage + 1}_block{block + 1}',
        )(x)
      features[f'stage{stage + 1}'] = x
    x = layers.act(layers.norm(name='final_norm')(x))
    logits, features['pooled'] = classify(x, self.num_classes)
    return logits, features


class _Block(nn.Module):
  """norm, act, conv, norm, act, conv, plus x (activated where it changes)."""

  layers: Layers
  width: int
  stride: int
  shortcut_kernel: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv, norm, act = self.layers
    y = act(norm(name='norm1')(x))
    if x.shape[-1] != self.width:
      x = conv(self.width, self.shortcut_kernel, self.stride, name='shortcut')(
        y
      )
    y = conv(self.width, 3, self.stride, name='conv1')(y)
    y = act(norm(name='norm2')(y))
    return x + conv(self.width, 3, name='conv2')(y)
