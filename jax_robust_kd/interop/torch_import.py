"""PyTorch state_dicts of the field's architectures as Flax variables.

A name map per family and nothing else: every key of the checkpoint is used and
every variable of the model is filled, or the import is refused. The layouts are
those of RobustBench's model zoo and of the ARD and RSLAD repositories.
"""

from collections.abc import Callable, Mapping
import re

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import PyTree, UserError

# Model fields that a layout implies; a model that has them otherwise would
# take the weights and compute something else.
_TORCH = {'padding': 'symmetric'}
_DEEPMIND = {'padding': 'same'}

_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_NORMALIZATION = {
  'mu': 'mean',
  'sigma': 'std',
  'mean': 'mean',
  'std': 'std',
  'normalize.mean': 'mean',
  'normalize.std': 'std',
}


def _resnet(layer: str, stage: int, block: int) -> str:
  if not stage:
    return {'stem': 'conv1', 'stem_norm': 'bn1', 'head': 'linear'}[layer]
  inside = {'shortcut': 'shortcut.0', 'shortcut_norm': 'shortcut.1'}
  name = inside.get(layer, layer.replace('norm', 'bn'))
  return f'layer{stage}.{block}.{name}'


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


# name -> (module class, a key that only this layout has, name map, fields)
LAYOUTS: dict[str, tuple[str, str, Callable[..., str], dict[str, str]]] = {
  'dm_preact_resnet': ('PreActResNet', 'conv_2d.weight', _dm_preact, _DEEPMIND),
  'dm_wide_resnet': ('WideResNet', 'init_conv.weight', _dm_wide, _DEEPMIND),
  'wide_resnet': ('WideResNet', 'block1.layer.0.bn1.weight', _wide, _TORCH),
  'mobilenet_v2': ('MobileNetV2', 'layers.0.bn3.weight', _mobilenet, _TORCH),
  'resnet': ('ResNet', 'bn1.weight', _resnet, _TORCH),
  'preact_resnet': ('PreActResNet', 'layer1.0.bn1.weight', _preact, _TORCH),
}


def import_state(state: Mapping[str, np.ndarray], model: nn.Module) -> PyTree:
  """Turns a PyTorch state_dict into the variables of a model.

  Prefixes 'module.' and 'model.' are removed. Counters of batches and the
  unused `sub_block1` of the TRADES code's WideResNets are dropped. A mean or
  standard deviation in the checkpoint must be the model's.

  Args:
    state: names and arrays as in PyTorch (convolutions OIHW, linear OI).
    model: from models.build(), of the architecture of the checkpoint.

  Returns:
    {'params': ..., 'batch_stats': ...}, float32.

  Raises:
    UserError: for an unknown layout, the layout of another model, a key that
      is missing or left over, a wrong shape, a value that is not finite.
  """
  state = strip(state)
  rule = _rule_for(state, model)
  state = _check_normalization(state, model)
  stem = f'{rule("stem", 0, 0)}.weight'
  _check_keys(set(state), {stem}, unused=False)
  template = jax.eval_shape(
    lambda image: model.init(jax.random.key(0), image, train=False),
    jax.ShapeDtypeStruct((1, 32, 32, state[stem].shape[1]), jnp.float32),
  )
  shapes: dict = flatten_dict(template)
  wanted = {path: torch_key(path, rule) for path in shapes}
  _check_keys(set(state), set(wanted.values()))
  flat = {
    path: _convert(key, state[key], shapes[path].shape)
    for path, key in wanted.items()
  }
  return unflatten_dict(flat)


def strip(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes prefixes and the entries that no forward pass uses."""
  kept = {}
  for key, value in state.items():
    name = re.sub(r'^(module\.|model\.)+', '', key)
    if not name.endswith('num_batches_tracked') and not name.startswith(
      'sub_block1.'
    ):
      kept[name] = np.asarray(value)
  return kept


def _rule_for(state: Mapping, model: nn.Module) -> Callable[..., str]:
  """The name map of the layout, once layout and model agree."""
  found = next((n for n, row in LAYOUTS.items() if row[1] in state), None)
  if found is None:
    raise UserError(
      f'the checkpoint has none of the known layouts {sorted(LAYOUTS)}: its '
      f'first keys are {sorted(state)[:3]}'
    )
  kind, _, rule, fields = LAYOUTS[found]
  given = type(model).__name__
  if given != kind and not (kind == 'ResNet' and given == 'SmallResNet'):
    raise UserError(
      f'the checkpoint has the layout {found!r}, which belongs to a {kind}, '
      f'and the model is a {given}'
    )
  for field, value in fields.items():
    if getattr(model, field) != value:
      raise UserError(
        f'the checkpoint has the layout {found!r}, which needs {field} '
        f'{value!r}, and the model has {getattr(model, field)!r}'
      )
  return rule


def _check_normalization(state: dict, model: nn.Module) -> dict:
  """Compares mean and std, if the checkpoint has them, and takes them out."""
  for key in _NORMALIZATION.keys() & state.keys():
    field = _NORMALIZATION[key]
    theirs = tuple(round(float(v), 6) for v in state[key].ravel())
    ours = getattr(model, field)
    if len(ours) != len(theirs) or not np.allclose(ours, theirs, atol=1e-5):
      raise UserError(
        f'the checkpoint has {key} {theirs} and the model {field} {ours}: '
        f'build the model with {field}={theirs}'
      )
  return {k: v for k, v in state.items() if k not in _NORMALIZATION}


def torch_key(path: tuple[str, ...], rule: Callable[..., str]) -> str:
  """('params', 'stage1_block2', 'conv1', 'kernel'): layer1.1.conv1.weight."""
  _, *place, leaf = path
  match = re.fullmatch(r'stage(\d+)_block(\d+)', place[0])
  stage, block = (int(match[1]), int(match[2]) - 1) if match else (0, 0)
  return f'{rule(place[-1], stage, block)}.{_LEAVES[leaf]}'


def _check_keys(given: set[str], wanted: set[str], unused=True) -> None:
  missing, left = sorted(wanted - given), sorted(given - wanted)
  for what, keys in (('lacks', missing), ('has unused', left * unused)):
    if keys:
      raise UserError(
        f'the checkpoint {what} {len(keys)} keys of the model, the first are '
        f'{keys[:3]}: check depth, width and variant of the model'
      )


def _convert(key: str, value: np.ndarray, shape: tuple[int, ...]):
  """Convolutions OIHW -> HWIO, linear OI -> IO, vectors as they are."""
  if value.ndim == 4:
    value = value.transpose(2, 3, 1, 0)
  elif value.ndim == 2:
    value = value.T
  if value.shape != shape:
    raise UserError(
      f'key {key!r} of the checkpoint has shape {value.shape} (in Flax order) '
      f'and the model needs {shape}: check width, depth and num_classes'
    )
  if not np.all(np.isfinite(value)):
    raise UserError(f'key {key!r} of the checkpoint is not finite')
  return jnp.asarray(value, jnp.float32)


def read_state(path: str) -> dict[str, np.ndarray]:
  """Reads a state_dict from .npz, or with PyTorch from .pt, .pth, .tar.

  A dictionary around it ('state_dict', 'last', 'model', 'net') is opened.

  Raises:
    UserError: for a file that is not there, or PyTorch that is not installed.
  """
  try:
    if path.endswith('.npz'):
      with np.load(path, allow_pickle=False) as file:
        return dict(file)
    import torch  # type: ignore[import-not-found]

    found = torch.load(path, map_location='cpu', weights_only=True)
  except FileNotFoundError as error:
    raise UserError(f'checkpoint {path!r} does not exist') from error
  except ImportError as error:
    raise UserError(
      f'checkpoint {path!r} needs PyTorch to be read: install torch, or save '
      'the arrays as .npz'
    ) from error
  for name in ('state_dict', 'last', 'model', 'net'):
    if isinstance(found.get(name), Mapping):
      found = found[name]
      break
  return {k: v.float().numpy() for k, v in found.items()}
