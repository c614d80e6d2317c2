"""The architecture of a PyTorch checkpoint, from its keys and shapes."""

import ast
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
  head, stem = _ends(state)
  layout = torch_import.find_layout(state)
  sizes = _count_blocks(state, LAYOUTS[layout].rule)
  name, fields, assumed = _variant(layout, state, sizes, stem)
  fields |= normalization(state)
  return Architecture(name, state[head].shape[0], fields, assumed)


def normalization(state: Mapping[str, np.ndarray]) -> dict[str, tuple]:
  """Returns the mean and standard deviation that a state_dict has, or {}."""
  return {
    field: tuple(float(v) for v in state[key].ravel())
    for key, field in torch_import.NORMALIZATION.items()
    if key in state
  }


def _ends(state: Mapping) -> tuple[str, str]:
  """Returns the keys of the last and the first layer."""
  layout = torch_import.find_layout(state)
  rule = LAYOUTS[layout].rule
  head, stem = (f'{rule(part, 0, 0)}.weight' for part in ('head', 'stem'))
  if head not in state or stem not in state:
    raise UserError(
      f'the checkpoint has the layout {layout!r} but no '
      f'{head if head not in state else stem!r}: it is no whole network'
    )
  return head, stem


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


def parse(text: str, num_classes: int) -> Architecture:
  """Reads an architecture that a user wrote.

  Args:
    text: such as 'wide_resnet:depth=34,width=10,activation=swish'.
    num_classes: K.

  Raises:
    UserError: it is not written so.
  """
  name, _, given = text.partition(':')
  try:
    call: Any = ast.parse(f'_({given})', mode='eval').body
    if call.args or any(k.arg is None for k in call.keywords):
      raise SyntaxError
    fields = {k.arg: _value(k.value) for k in call.keywords}
  except (SyntaxError, ValueError, AttributeError):
    raise UserError(
      f'architecture {text!r} cannot be read; write it as '
      'wide_resnet:depth=34,width=10'
    ) from None
  return Architecture(name.strip(), num_classes, fields)


def _value(node: ast.expr) -> Any:
  """A number, text or tuple; a bare word is text."""
  return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def measure(state: Mapping[str, np.ndarray]) -> tuple[int, int]:
  """Returns how many classes and channels a state_dict is for.

  Raises:
    UserError: it has no known layout, or is no whole network.
  """
  state = torch_import.strip(state)
  head, stem = _ends(state)
  return state[head].shape[0], state[stem].shape[1]


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
    UserError: as `read_state` and `fit`.
  """
  return fit(path, read_state(path, say), architecture, say)


def fit(
  path: str,
  state: Mapping[str, np.ndarray],
  architecture: Architecture | None,
  say: Callable[[str], None],
) -> tuple[nn.Module, PyTree]:
  """Turns a state_dict into a model with its weights.

  Args:
    path: where it is from, for messages.
    state: arrays by name.
    architecture: of the checkpoint; None: found from its keys.
    say: text -> None, told what was assumed.

  Returns:
    The module and its variables.

  Raises:
    UserError: as `recognize` and `import_state`; a checkpoint that does not fit
      is refused with what would.
  """
  if architecture is None:
    architecture = recognize(state)
    model = _build(architecture)
    if unknown := _unknown(architecture, model):
      say(
        f'{path} is a {_describe(architecture)}; its keys do not tell {unknown}'
      )
    return model, torch_import.import_state(state, model)
  model = _build(architecture)
  try:
    return model, torch_import.import_state(state, model)
  except UserError as error:
    fits = ''
    try:
      found = recognize(state)
      if found[:3] != architecture[:3]:
        fits = f'; what fits it is {_describe(found)}'
    except UserError:
      pass
    raise UserError(f'{path}: {error}{fits}') from None


def _unknown(architecture: Architecture, model: nn.Module) -> str:
  """What no key tells, and what is taken for it."""
  values = {
    field: repr(getattr(model, field))
    for field in architecture.assumed.split(', ')
    if field
  }
  if 'mean' not in architecture.fields:
    values['mean and std'] = 'none'
  return ', '.join(f'{k} ({v} is assumed)' for k, v in values.items())


def _build(architecture: Architecture) -> nn.Module:
  name, num_classes, fields, _ = architecture
  return models.build(name, num_classes, fields)


def _describe(architecture: Architecture) -> str:
  name, num_classes, fields, _ = architecture
  set_to = ', '.join(f'{k}={v!r}' for k, v in fields.items())
  return re.sub(' with $', '', f'{name} of {num_classes} classes with {set_to}')
