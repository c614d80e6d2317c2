"""A student as PyTorch: weights in `model.pt`, the network in `model.py`."""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict
import numpy as np

from jax_robust_kd.core import PyTree, UserError
from jax_robust_kd.interop.layouts import LAYOUTS
from jax_robust_kd.interop.torch_import import torch_key

_LAYOUT_OF = {
  'ResNet': 'resnet',
  'SmallResNet': 'resnet',
  'PreActResNet': 'preact_resnet',
  'WideResNet': 'wide_resnet',
  'MobileNetV2': 'mobilenet_v2',
}
_INTERNAL = ('parent', 'name', 'dtype', 'bn_axis_name')

_LOADER = '''

FAMILY, CHANNELS = {family!r}, {channels}
FIELDS = {fields}
CLASS_NAMES = {class_names}


def load(weights='model.pt'):
  """Returns the network with its weights, in evaluation mode."""
  network = Network(FAMILY, CHANNELS, **FIELDS)
  network.load_state_dict(torch.load(weights, weights_only=True))
  return network.eval()
'''


def export_state(variables: PyTree, model: nn.Module) -> dict[str, np.ndarray]:
  """Turns variables into a PyTorch state_dict, the inverse of `import_state`.

  Args:
    variables: {'params': ..., 'batch_stats': ...}.
    model: from models.build().

  Returns:
    Key of RobustBench's layout -> float32 array (convolutions OIHW, linear OI).

  Raises:
    UserError: a model of another kind than those of `models.MODELS`.
  """
  _, _, rule, _ = LAYOUTS[_layout(model)]
  state = {}
  for path, leaf in flatten_dict(variables).items():
    value = np.asarray(leaf, np.float32)
    if value.ndim == 4:
      value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2:
      value = value.T
    state[torch_key(path, rule)] = np.ascontiguousarray(value)
  return state


def _layout(model: nn.Module) -> str:
  family = type(model).__name__
  if family not in _LAYOUT_OF:
    raise UserError(
      f'a {family} has no PyTorch layout; those of {sorted(_LAYOUT_OF)} have '
      'one, and every network can be exported to litert and stablehlo'
    )
  return _LAYOUT_OF[family]


def fields_of(model: nn.Module) -> dict[str, Any]:
  """Returns the fields of a model that its computation depends on."""
  fields = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(model)
    if field.name not in _INTERNAL
  }
  return json.loads(json.dumps(fields))  # tuples become lists, once


def model_source(
  model: nn.Module, channels: int, class_names: tuple[str, ...]
) -> str:
  """Returns the text of `model.py`, which needs PyTorch alone."""
  _layout(model)
  source = Path(__file__).with_name('torch_networks.py').read_text()
  return source + _LOADER.format(
    family=type(model).__name__,
    channels=channels,
    fields=repr(fields_of(model)),
    class_names=repr(list(class_names)),
  )


def write_torch(
  folder: Path, variables: PyTree, model: nn.Module,
  class_names: tuple[str, ...],
) -> None:  # fmt: skip
  """Writes model.pt and model.py.

  Raises:
    UserError: PyTorch is not installed, or the model has no layout.
  """
  try:
    import torch  # type: ignore[import-not-found]
  except ImportError:
    raise UserError(
      'an export to torch needs PyTorch: pip install "jax_robust_kd[torch]"'
    ) from None
  state = export_state(variables, model)
  channels = variables['params']['stem']['kernel'].shape[2]
  torch.save(
    {key: torch.from_numpy(value.copy()) for key, value in state.items()},
    folder / 'model.pt',
  )
  source = model_source(model, channels, class_names)
  (folder / 'model.py').write_text(source, encoding='utf-8')


def make_runner(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
  """Returns images [N, H, W, C] -> logits [N, K], by the written files."""
  import torch  # type: ignore[import-not-found]

  torch.set_num_threads(1)  # as the other runtimes: latency is of one core
  scope: dict[str, Any] = {'__name__': 'model'}
  exec((folder / 'model.py').read_text(encoding='utf-8'), scope)  # ours
  network = scope['load'](folder / 'model.pt')

  def run(images: np.ndarray) -> np.ndarray:
    chw = images.astype(np.float32).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
      return network(torch.from_numpy(chw)).numpy()

  return run
