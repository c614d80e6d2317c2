"""ResNet-18 and MobileNetV2 for small images in plain PyTorch.

The same networks as `jax_robust_kd.models` builds, with the layer names that
its import understands, so that `benchmarks.check_twin` can compare the two.
"""

import torch
from torch import nn
import torch.nn.functional as F

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# (expansion, features, blocks, stride of the first)
_MOBILE = (
  (1, 16, 1, 1),
  (6, 24, 2, 1),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


def conv(inputs: int, features: int, kernel=3, stride=1, groups=1):
  """A convolution without bias."""
  return nn.Conv2d(
    inputs, features, kernel, stride, kernel // 2, groups=groups, bias=False
  )


def _shortcut(inputs: int, features: int, stride: int) -> nn.Module:
  return nn.Sequential(
    conv(inputs, features, 1, stride), nn.BatchNorm2d(features)
  )


class _Basic(nn.Module):
  """Two 3x3 convolutions plus x."""

  def __init__(self, inputs, features, stride):
    super().__init__()
    self.conv1 = conv(inputs, features, stride=stride)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = conv(features, features)
    self.bn2 = nn.BatchNorm2d(features)
    same = stride == 1 and inputs == features
    self.shortcut = (
      nn.Identity() if same else _shortcut(inputs, features, stride)
    )

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class _Inverted(nn.Module):
  """1x1 wider, 3x3 per channel, 1x1 narrower, plus x at stride 1."""

  def __init__(self, inputs, expansion, features, stride):
    super().__init__()
    inner = inputs * expansion
    self.residual = stride == 1
    self.conv1 = conv(inputs, inner, 1)
    self.bn1 = nn.BatchNorm2d(inner)
    self.conv2 = conv(inner, inner, 3, stride, groups=inner)
    self.bn2 = nn.BatchNorm2d(inner)
    self.conv3 = conv(inner, features, 1)
    self.bn3 = nn.BatchNorm2d(features)
    changes = self.residual and inputs != features
    self.shortcut = _shortcut(inputs, features, 1) if changes else nn.Identity()

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = F.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return y + self.shortcut(x) if self.residual else y


class _Network(nn.Module):
  """What both share: normalization, pooling over all pixels, classifier."""

  def __init__(self, features: int):
    super().__init__()
    for name, value in (('mean', _MEAN), ('std', _STD)):
      value = torch.tensor(value).view(1, 3, 1, 1)
      self.register_buffer(name, value, persistent=False)
    self.linear = nn.Linear(features, 10)

  def forward(self, image):
    x = self.body((image - self.mean) / self.std)
    return self.linear(x.mean((2, 3)))


class ResNet18(_Network):
  """He et al. 2015, with a 3x3 stem of stride 1."""

  def __init__(self):
    super().__init__(512)
    self.conv1 = conv(3, 64)
    self.bn1 = nn.BatchNorm2d(64)
    inputs = 64
    for i, features in enumerate((64, 128, 256, 512), 1):
      first = _Basic(inputs, features, 1 if i == 1 else 2)
      layer = nn.Sequential(first, _Basic(features, features, 1))
      setattr(self, f'layer{i}', layer)
      inputs = features

  def body(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class MobileNetV2(_Network):
  """Sandler et al. 2018, in the form that ARD and RSLAD train."""

  def __init__(self):
    super().__init__(1280)
    self.conv1 = conv(3, 32)
    self.bn1 = nn.BatchNorm2d(32)
    blocks, inputs = [], 32
    for expansion, features, size, stride in _MOBILE:
      for i in range(size):
        blocks.append(
          _Inverted(inputs, expansion, features, 1 if i else stride)
        )
        inputs = features
    self.layers = nn.Sequential(*blocks)
    self.conv2 = conv(inputs, 1280, 1)
    self.bn2 = nn.BatchNorm2d(1280)

  def body(self, x):
    x = self.layers(F.relu(self.bn1(self.conv1(x))))
    return F.relu(self.bn2(self.conv2(x)))


MODELS = {'resnet18': ResNet18, 'mobilenet_v2': MobileNetV2}


def build(name: str) -> nn.Module:
  """Builds a network in the memory format that is fastest on CPUs."""
  return MODELS[name]().to(memory_format=torch.channels_last)
