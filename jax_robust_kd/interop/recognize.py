"""The architecture of a PyTorch checkpoint, from its keys and shapes."""

from collections.abc import Callable, Mapping
import re
from typing import Any, NamedTuple

from flax import linen as nn
import numpy as np

from jax_robust_kd import models
from jax_robust_kd.core import PyTree, UserError
from jax_robust_kd.interop import torch_import
from jax_robust_kd.interop.layouts import LAYOUTS
from jax_robust_kd.interop.read import read_state
from jax_robust_kd.runtime import console

# Blocks per stage and whether they are bottlenecks -> name in MODELS.
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
  ((2, 2, 2, 2), False): 'resnet18',
  ((3, 4, 6, 3), False): 'resnet34',
  ((3, 4, 6, 3), True): 'resnet50',
}


class Architecture(NamedTuple):
  """A model by name, as `models.build` takes it.

  Attributes:
    name: a key of MODELS.
    num_classes: K.
    fields: of the module.
    assumed: what the keys cannot tell, in words; '' for nothing.
  """

  name: str
  num_classes: int
  fields: dict[str, Any]
  assumed: str = ''


def recognize(state: Mapping[str, np.ndarray]) -> Architecture:
  """Finds the architecture that a state_dict belongs to.

  Args:
    state: arrays by name, as PyTorch has them.

  Returns:
    The architecture, mean and standard deviation among its fields where the
    checkpoint has them.

  Raises:
    UserError: it is none that this library has.
  """
  state = torch_import.strip(state)
  layout = torch_import.find_layout(state)
  rule = LAYOUTS[layout].rule
  head, stem = (f'{rule(part, 0, 0)}.weight' for part in ('head', 'stem'))
  if head not in state or stem not in state:
    raise UserError(
      f'the checkpoint has the layout {layout!r} but no '
      f'{head if head not in state else stem!r}: it is no whole network'
    )
  sizes = _count_blocks(state, rule)
  name, fields, assumed = _variant(layout, state, sizes, stem)
  for key, field in torch_import.NORMALIZATION.items():
    if key in state:
      fields[field] = tuple(float(v) for v in state[key].ravel())
  return Architecture(name, state[head].shape[0], fields, assumed)


def _count_blocks(state: Mapping, rule: Callable) -> tuple[int, ...]:
  """Counts the blocks of each stage, by their first convolution."""
  sizes = []
  for stage in range(1, 5):
    block = 0
    try:
      while f'{rule("conv1", stage, block)}.weight' in state:
        block += 1
    except IndexError:  # a stage that the family does not have
      break
    sizes.append(block)
  return tuple(size for size in sizes if size)


def _variant(
  layout: str, state: Mapping, sizes: tuple[int, ...], stem: str
) -> tuple[str, dict[str, Any], str]:
  """Returns name, fields and what is assumed."""
  width = state[stem].shape[0]
  rule = LAYOUTS[layout].rule
  if layout.endswith('wide_resnet'):
    first = state[f'{rule("conv1", 1, 0)}.weight'].shape[0]
    fields = {'depth': 6 * sizes[0] + 4, 'width': first // 16}
    return layout, fields, 'activation'
  if layout == 'mobilenet_v2':
    return layout, {}, 'activation'
  if layout == 'dm_preact_resnet':
    return 'dm_preact_resnet18', {'width': width}, 'activation'
  if layout == 'preact_resnet':
    name = 'preact_resnet18' + '_v2' * ('bn.weight' in state)
    return name, {'width': width}, 'activation, shortcut_activated'
  if len(sizes) == 3 and len(set(sizes)) == 1:
    return 'small_resnet', {'depth': 6 * sizes[0] + 2, 'width': width}, (
      'activation'
    )  # fmt: skip
  bottleneck = f'{rule("conv3", 1, 0)}.weight' in state
  name = _RESNETS.get((sizes, bottleneck))
  if name is None:
    raise UserError(
      f'the checkpoint is a ResNet with {sizes} blocks, which this library '
      f'does not have; it has {", ".join(_RESNETS.values())}'
    )
  stems = {3: '3x3', 7: '7x7'}
  return name, {'width': width, 'stem': stems.get(state[stem].shape[-1])}, (
    'activation'
  )  # fmt: skip


def load(
  path: str,
  architecture: Architecture | None = None,
  say: Callable[[str], None] = console.say,
) -> tuple[nn.Module, PyTree]:
  """Reads a checkpoint of another program as a model with its weights.

  Args:
    path: as for `read_state`.
    architecture: of the checkpoint; None: found from its keys.
    say: text -> None, told what was changed or assumed.

  Returns:
    The module and its variables.

  Raises:
    UserError: as `read_state`, `recognize` and `import_state`; a checkpoint
      that does not fit is refused with what would.
  """
  state = read_state(path, say)
  if architecture is None:
    architecture = recognize(state)
    model = _build(architecture)
    if architecture.assumed:
      values = {f: getattr(model, f) for f in architecture.assumed.split(', ')}
      say(
        f'{path} is a {_describe(architecture)}; its keys do not tell '
        f'{", ".join(f"{k} ({v!r} is assumed)" for k, v in values.items())}'
      )
    return model, torch_import.import_state(state, model)
  model = _build(architecture)
  try:
    return model, torch_import.import_state(state, model)
  except UserError as error:
    try:
      fits = f'; what fits it is {_describe(recognize(state))}'
    except UserError:
      fits = ''
    raise UserError(f'{path}: {error}{fits}') from None


def _build(architecture: Architecture) -> nn.Module:
  name, num_classes, fields, _ = architecture
  return models.build(name, num_classes, fields)


def _describe(architecture: Architecture) -> str:
  name, num_classes, fields, _ = architecture
  set_to = ', '.join(f'{k}={v!r}' for k, v in fields.items())
  return re.sub(' with $', '', f'{name} of {num_classes} classes with {set_to}')
