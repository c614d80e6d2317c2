"""How families of PyTorch models name their weights."""

from collections.abc import Callable
from typing import NamedTuple

# Model fields that a layout implies; a model that has them otherwise would
# take the weights and compute something else.
_TORCH = {'padding': 'symmetric'}
_DEEPMIND = {'padding': 'same'}


def _resnet(
  layer: str,
  stage: int,
  block: int,
  head: str = 'linear',
  shortcut: str = 'shortcut',
) -> str:
  if not stage:
    return {'stem': 'conv1', 'stem_norm': 'bn1', 'head': head}[layer]
  inside = {'shortcut': f'{shortcut}.0', 'shortcut_norm': f'{shortcut}.1'}
  name = inside.get(layer, layer.replace('norm', 'bn'))
  return f'layer{stage}.{block}.{name}'


def _torchvision(layer: str, stage: int, block: int) -> str:
  return _resnet(layer, stage, block, 'fc', 'downsample')


def _preact(layer: str, stage: int, block: int) -> str:
  if not stage:
    return {'stem': 'conv1', 'final_norm': 'bn', 'head': 'linear'}[layer]
  name = {'shortcut': 'shortcut.0'}.get(layer, layer.replace('norm', 'bn'))
  return f'layer{stage}.{block}.{name}'


def _dm_preact(layer: str, stage: int, block: int) -> str:
  if not stage:
    top = {'stem': 'conv_2d', 'final_norm': 'batchnorm', 'head': 'logits'}
    return top[layer]
  inside = {
    'norm1': 'batchnorm_0',
    'conv1': 'conv_2d_1',
    'norm2': 'batchnorm_1',
    'conv2': 'conv_2d_2',
    'shortcut': 'shortcut',
  }
  return f'layer_{stage - 1}.{block}.{inside[layer]}'


def _wide(layer: str, stage: int, block: int) -> str:
  if not stage:
    return {'stem': 'conv1', 'final_norm': 'bn1', 'head': 'fc'}[layer]
  name = {'shortcut': 'convShortcut'}.get(layer, layer.replace('norm', 'bn'))
  return f'block{stage}.layer.{block}.{name}'


def _dm_wide(layer: str, stage: int, block: int) -> str:
  if not stage:
    top = {'stem': 'init_conv', 'final_norm': 'batchnorm', 'head': 'logits'}
    return top[layer]
  inside = {
    'norm1': 'batchnorm_0',
    'conv1': 'conv_0',
    'norm2': 'batchnorm_1',
    'conv2': 'conv_1',
    'shortcut': 'shortcut',
  }
  return f'layer.{stage - 1}.block.{block}.{inside[layer]}'


def _mobilenet(layer: str, stage: int, block: int) -> str:
  if not stage:
    return {
      'stem': 'conv1',
      'stem_norm': 'bn1',
      'final_conv': 'conv2',
      'final_norm': 'bn2',
      'head': 'linear',
    }[layer]
  before = (0, 3, 6, 13)[stage - 1]  # blocks of the stages before this one
  inside = {'shortcut': 'shortcut.0', 'shortcut_norm': 'shortcut.1'}
  name = inside.get(layer, layer.replace('norm', 'bn'))
  return f'layers.{before + block}.{name}'


class Layout(NamedTuple):
  """How a family of PyTorch models names its weights.

  Attributes:
    module: name of our module's class.
    key: a key that no layout further down has.
    rule: (layer, stage, block) -> name in PyTorch.
    fields: of our module, which this layout implies.
  """

  module: str
  key: str
  rule: Callable[[str, int, int], str]
  fields: dict[str, str]


LAYOUTS = {
  'dm_preact_resnet': Layout(
    'PreActResNet', 'conv_2d.weight', _dm_preact, _DEEPMIND
  ),
  'dm_wide_resnet': Layout(
    'WideResNet', 'init_conv.weight', _dm_wide, _DEEPMIND
  ),
  'wide_resnet': Layout(
    'WideResNet', 'block1.layer.0.bn1.weight', _wide, _TORCH
  ),
  'mobilenet_v2': Layout(
    'MobileNetV2', 'layers.0.bn3.weight', _mobilenet, _TORCH
  ),
  'torchvision_resnet': Layout('ResNet', 'fc.weight', _torchvision, _TORCH),
  'resnet': Layout('ResNet', 'bn1.weight', _resnet, _TORCH),
  'preact_resnet': Layout(
    'PreActResNet', 'layer1.0.bn1.weight', _preact, _TORCH
  ),
}
