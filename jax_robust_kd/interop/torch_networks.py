"""The networks of jax_robust_kd in plain PyTorch, for an exported student.

This file needs nothing but PyTorch: an export puts it beside the weights as
`model.py`. Layers have the names that RobustBench's model zoo gives them.
Images are [N, C, H, W] in [0, 1]; normalization is inside.
"""

import torch
from torch import nn
import torch.nn.functional as F

ACTIVATIONS = {'relu': F.relu, 'relu6': F.relu6, 'swish': F.silu}
RESNETS = {18: ((2, 2, 2, 2), 1), 34: ((3, 4, 6, 3), 1), 50: ((3, 4, 6, 3), 4)}
# Expansion, features, blocks, stride of the first.
MOBILE = (
  (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
  (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


class Conv(nn.Conv2d):
  """Without bias; padding is symmetric, or (0, 1) as TensorFlow pads."""

  def __init__(
    self, inputs, features, kernel=3, stride=1, groups=1, same=False
  ):
    self.crop = same and stride == 2 and kernel > 1
    padding = 0 if self.crop else kernel // 2
    super().__init__(
      inputs, features, kernel, stride, padding, groups=groups, bias=False
    )

  def forward(self, x):
    if self.crop:
      ends = []
      for size in (x.shape[-1], x.shape[-2]):
        need = max((-(-size // 2) - 1) * 2 + self.kernel_size[0] - size, 0)
        ends += [need // 2, need - need // 2]
      x = F.pad(x, ends)
    return super().forward(x)


class Basic(nn.Module):
  """Two 3x3 convolutions, or 1x1, 3x3, 1x1 where expansion > 1, plus x."""

  def __init__(self, inputs, width, stride, expansion, act, same, shortcut):
    super().__init__()
    out = width * expansion
    plan = [(out, 3, stride), (out, 3, 1)]
    if expansion > 1:
      plan = [(width, 1, 1), (width, 3, stride), (out, 1, 1)]
    self.act, self.count, self.stride = act, len(plan), stride
    self.extra = out - inputs if not shortcut else 0
    channels = inputs
    for i, (features, kernel, step) in enumerate(plan, 1):
      convolution = Conv(channels, features, kernel, step, same=same)
      setattr(self, f'conv{i}', convolution)
      setattr(self, f'bn{i}', nn.BatchNorm2d(features))
      channels = features
    self.shortcut = nn.Identity()
    if shortcut and (stride != 1 or inputs != out):
      self.shortcut = nn.Sequential(
        Conv(inputs, out, shortcut, stride, same=same), nn.BatchNorm2d(out)
      )

  def forward(self, x):
    y = x
    for i in range(1, self.count + 1):
      y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
      y = self.act(y) if i < self.count else y
    if self.extra:  # no parameters: every other pixel, zero channels around
      low = self.extra // 2
      x = x[:, :, :: self.stride, :: self.stride]
      x = F.pad(x, (0, 0, 0, 0, low, self.extra - low))
    return self.act(y + self.shortcut(x))


class PreAct(nn.Module):
  """norm, act, conv, norm, act, conv, plus x."""

  def __init__(self, inputs, width, stride, act, same, kernel, activated, name):
    super().__init__()
    self.act, self.activated, self.name = act, activated, name
    self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
    self.conv1 = Conv(inputs, width, 3, stride, same=same)
    self.conv2 = Conv(width, width, same=same)
    shortcut = None
    if inputs != width or (stride != 1 and name == 'shortcut'):
      shortcut = Conv(inputs, width, kernel, stride, same=same)
      if name == 'shortcut':
        shortcut = nn.Sequential(shortcut)
    setattr(self, name, shortcut)

  def forward(self, x):
    y = self.act(self.bn1(x))
    shortcut = getattr(self, self.name)
    if shortcut is not None:
      x = shortcut(y if self.activated else x)
    return x + self.conv2(self.act(self.bn2(self.conv1(y))))


class Inverted(nn.Module):
  """1x1 wider, 3x3 per channel, 1x1 narrower, plus x at stride 1."""

  def __init__(self, inputs, expansion, features, stride, act, same):
    super().__init__()
    inner = inputs * expansion
    self.act, self.residual = act, stride == 1
    self.conv1 = Conv(inputs, inner, 1)
    self.conv2 = Conv(inner, inner, 3, stride, inner, same)
    self.conv3 = Conv(inner, features, 1)
    self.bn1, self.bn2 = nn.BatchNorm2d(inner), nn.BatchNorm2d(inner)
    self.bn3 = nn.BatchNorm2d(features)
    self.shortcut = nn.Identity()
    if self.residual and inputs != features:
      self.shortcut = nn.Sequential(
        Conv(inputs, features, 1), nn.BatchNorm2d(features)
      )

  def forward(self, x):
    y = self.act(self.bn1(self.conv1(x)))
    y = self.bn3(self.conv3(self.act(self.bn2(self.conv2(y)))))
    return y + self.shortcut(x) if self.residual else y


class Wide(nn.Module):
  """One stage of a WideResNet, whose blocks are under `layer`."""

  def __init__(self, blocks):
    super().__init__()
    self.layer = nn.Sequential(*blocks)

  def forward(self, x):
    return self.layer(x)


class Network(nn.Module):
  """A network of `family` with the fields of its config.

  Args:
    family: 'ResNet', 'SmallResNet', 'PreActResNet', 'WideResNet' or
      'MobileNetV2'.
    channels: of the images.
    fields: num_classes, depth, width, mean, std, activation, padding and what
      else the family has.
  """

  def __init__(self, family: str, channels: int, **fields):
    super().__init__()
    self.family, self.fields = family, fields
    self.act = ACTIVATIONS[fields.get('activation', 'relu')]
    self.same = fields.get('padding', 'symmetric') == 'same'
    for name, default in (('mean', 0.0), ('std', 1.0)):
      value = fields.get(name) or (default,) * channels
      tensor = torch.tensor(value, dtype=torch.float32).view(1, -1, 1, 1)
      self.register_buffer(name, tensor, persistent=False)
    features = getattr(self, f'build_{family.lower()}')(channels)
    linear = nn.Linear(features, fields['num_classes'])
    setattr(self, 'fc' if family == 'WideResNet' else 'linear', linear)

  def build_resnet(self, channels):
    sizes, expansion = RESNETS[self.fields['depth']]
    kernel = self.fields.get('shortcut_kernel', 1)
    return self._basic_stages(channels, sizes, expansion, kernel)

  def build_smallresnet(self, channels):
    sizes = ((self.fields['depth'] - 2) // 6,) * 3
    return self._basic_stages(channels, sizes, 1, 0)

  def _basic_stages(self, channels, sizes, expansion, shortcut):
    width = self.fields['width']
    kernel, stride = 3, self.fields.get('stem_stride', 1)
    if self.fields.get('stem') == '7x7':
      kernel, stride = 7, 2
    self.conv1 = Conv(channels, width, kernel, stride, same=self.same)
    self.bn1 = nn.BatchNorm2d(width)
    inputs = width
    for stage, size in enumerate(sizes):
      blocks = []
      for block in range(size):
        step = 2 if stage and not block else 1
        out = width * 2**stage
        blocks.append(
          Basic(inputs, out, step, expansion, self.act, self.same, shortcut)
        )
        inputs = out * expansion
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
    return inputs

  def build_preactresnet(self, channels):
    width = inputs = self.fields['width']
    self.conv1 = Conv(channels, width, same=self.same)
    for stage in range(4):
      blocks = []
      for block in range(2):
        step, out = 2 if stage and not block else 1, width * 2**stage
        blocks.append(
          PreAct(
            inputs, out, step, self.act, self.same,
            self.fields.get('shortcut_kernel', 1),
            self.fields.get('shortcut_activated', False), 'shortcut',
          )
        )  # fmt: skip
        inputs = out
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
    if self.fields.get('final_norm'):
      self.bn = nn.BatchNorm2d(inputs)
    return inputs

  def build_wideresnet(self, channels):
    self.conv1, inputs = Conv(channels, 16, same=self.same), 16
    kernel = self.fields.get('shortcut_kernel', 1)
    for stage in range(3):
      blocks = []
      for block in range((self.fields['depth'] - 4) // 6):
        step = 2 if stage and not block else 1
        out = 16 * self.fields['width'] * 2**stage
        blocks.append(
          PreAct(
            inputs, out, step, self.act, self.same, kernel, True,
            'convShortcut',
          )
        )  # fmt: skip
        inputs = out
      setattr(self, f'block{stage + 1}', Wide(blocks))
    self.bn1 = nn.BatchNorm2d(inputs)
    return inputs

  def build_mobilenetv2(self, channels):
    self.conv1 = Conv(channels, 32, same=self.same)
    self.bn1 = nn.BatchNorm2d(32)
    blocks, inputs = [], 32
    for expansion, features, size, stride in MOBILE:
      for i in range(size):
        step = 1 if i else stride
        blocks.append(
          Inverted(inputs, expansion, features, step, self.act, self.same)
        )
        inputs = features
    self.layers = nn.Sequential(*blocks)
    self.conv2, self.bn2 = Conv(inputs, 1280, 1), nn.BatchNorm2d(1280)
    return 1280

  def forward(self, image):
    x = self.conv1((image - self.mean) / self.std)
    if self.family in ('ResNet', 'SmallResNet', 'MobileNetV2'):
      x = self.act(self.bn1(x))
    if self.fields.get('stem') == '7x7':
      x = F.max_pool2d(x, 3, 2, 1)
    if self.family == 'MobileNetV2':
      x = self.act(self.bn2(self.conv2(self.layers(x))))
    name = 'block' if self.family == 'WideResNet' else 'layer'
    for stage in range(1, 5):
      if hasattr(self, f'{name}{stage}'):
        x = getattr(self, f'{name}{stage}')(x)
    if self.family == 'WideResNet':
      x = self.act(self.bn1(x))
    elif self.family == 'PreActResNet' and hasattr(self, 'bn'):
      x = self.act(self.bn(x))
    head = self.fc if self.family == 'WideResNet' else self.linear
    return head(x.mean((2, 3)))
