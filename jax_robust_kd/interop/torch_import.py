"""PyTorch state_dicts of the field's architectures as Flax variables.

A name map per family and nothing else: every key of the checkpoint is used and
every variable of the model is filled, or the import is refused. The layouts are
those of RobustBench's model zoo, of the TRADES, ARD, RSLAD and AdaAD code, and
of torchvision's and timm's ResNets.
"""

from collections.abc import Callable, Mapping
import re

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import PyTree, UserError
from jax_robust_kd.interop.layouts import LAYOUTS
from jax_robust_kd.interop.read import strip_prefixes

_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
NORMALIZATION = {
  'mu': 'mean',
  'sigma': 'std',
  'mean': 'mean',
  'std': 'std',
  'normalize.mean': 'mean',
  'normalize.std': 'std',
}


def import_state(state: Mapping[str, np.ndarray], model: nn.Module) -> PyTree:
  """Turns a PyTorch state_dict into the variables of a model.

  PREFIXES of `read` are removed. Counters of batches and the unused
  `sub_block1` of the TRADES code's WideResNets are dropped. A mean or standard
  deviation in the checkpoint must be the model's.

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
  """Removes prefixes and the entries that no forward pass uses.

  Args:
    state: arrays by name.

  Returns:
    The arrays of the network, by their names in its own class.

  Raises:
    UserError: the same key with and without a prefix.
  """
  return {
    key: value
    for key, value in strip_prefixes(state).items()
    if not key.endswith('num_batches_tracked')
    and not key.startswith('sub_block1.')
  }


def find_layout(state: Mapping) -> str:
  """Returns the name of the layout that a stripped state_dict has.

  Args:
    state: arrays by name, from `strip`.

  Returns:
    A key of LAYOUTS.

  Raises:
    UserError: it has none of them.
  """
  for name, layout in LAYOUTS.items():
    if layout.key in state:
      return name
  raise UserError(
    f'the checkpoint has none of the known layouts {sorted(LAYOUTS)}: its '
    f'first keys are {sorted(state)[:3]}'
  )


def _rule_for(
  state: Mapping, model: nn.Module
) -> Callable[[str, int, int], str]:
  """The name map of the layout, once layout and model agree."""
  name = find_layout(state)
  layout = LAYOUTS[name]
  given = type(model).__name__
  if given != layout.module and (layout.module, given) != (
    'ResNet',
    'SmallResNet',
  ):
    raise UserError(
      f'the checkpoint has the layout {name!r}, which belongs to a '
      f'{layout.module}, and the model is a {given}'
    )
  for field, value in layout.fields.items():
    if getattr(model, field) != value:
      raise UserError(
        f'the checkpoint has the layout {name!r}, which needs {field} '
        f'{value!r}, and the model has {getattr(model, field)!r}'
      )
  return layout.rule


def _check_normalization(state: dict, model: nn.Module) -> dict:
  """Compares mean and std, if the checkpoint has them, and takes them out."""
  for key in NORMALIZATION.keys() & state.keys():
    field = NORMALIZATION[key]
    theirs = tuple(round(float(v), 6) for v in state[key].ravel())
    ours = getattr(model, field)
    if len(ours) != len(theirs) or not np.allclose(ours, theirs, atol=1e-5):
      raise UserError(
        f'the checkpoint has {key} {theirs} and the model {field} {ours}: '
        f'build the model with {field}={theirs}'
      )
  return {k: v for k, v in state.items() if k not in NORMALIZATION}


def torch_key(path: tuple[str, ...], rule: Callable) -> str:
  """('params', 'stage1_block2', 'conv1', 'kernel'): layer1.1.conv1.weight."""
  _, *place, leaf = path
  match = re.fullmatch(r'stage(\d+)_block(\d+)', place[0])
  stage, block = (int(match[1]), int(match[2]) - 1) if match else (0, 0)
  return f'{rule(place[-1], stage, block)}.{_LEAVES[leaf]}'


def _check_keys(given: set[str], wanted: set[str], unused=True) -> None:
  missing, left = sorted(wanted - given), sorted(given - wanted)
  if missing and not any('running_' in key for key in given):
    raise UserError(
      'the checkpoint has BatchNorm without running averages (no '
      f'{missing[0]!r}), so that an image would be normalized by those beside '
      'it: save the network with track_running_stats=True'
    )
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
  if key.endswith('running_var') and np.any(value < 0):
    raise UserError(
      f'key {key!r} of the checkpoint is a variance below 0: it is damaged'
    )
  return jnp.asarray(value, jnp.float32)
