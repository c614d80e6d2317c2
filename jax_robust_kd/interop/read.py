"""Files of weights, from other programs, as a flat dict of NumPy arrays.

`.npz` and `.safetensors` need nothing but NumPy; `.pt`, `.pth`, `.ckpt` and
`.tar` are read by PyTorch, which is an extra, and never run code.
"""

import argparse
from collections.abc import Callable, Mapping
import json
from pathlib import Path
import pickle
import re
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from jax_robust_kd.core import UserError
from jax_robust_kd.runtime import console

State = dict[str, np.ndarray]

PREFIXES = ('module.', 'model.', '_orig_mod.', 'backbone.')
TORCH = ('.pt', '.pth', '.ckpt', '.tar')
# Parts of a training checkpoint that hold arrays, but no network.
_NO_NETWORK = re.compile(r'optim|sched|scaler|rng|history|metric|loss', re.I)
_SAFETENSORS = {
  'BOOL': np.bool_,
  'U8': np.uint8,
  'I8': np.int8,
  'I16': np.int16,
  'I32': np.int32,
  'I64': np.int64,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'F32': np.float32,
  'F64': np.float64,
}


def read_state(path: str, say: Callable[[str], None] = console.say) -> State:
  """Reads the weights of one network.

  Dicts around them ('state_dict', 'net', 'model', 'ema', ... at any depth) are
  opened, PREFIXES are removed, half precision becomes float32.

  Args:
    path: a file .pt, .pth, .ckpt, .tar, .safetensors or .npz; where it holds
      several networks, 'FILE:NAME' chooses one.
    say: text -> None, told what was changed.

  Returns:
    Arrays by the name that PyTorch gives them, convolutions OIHW.

  Raises:
    UserError: the file is missing, damaged, of another kind, needs PyTorch,
      holds code, holds no weights or those of several networks.
  """
  file, entry = Path(path), ''
  if not file.exists() and ':' in path:
    before, _, entry = path.rpartition(':')
    file = Path(before)
  content = _read_file(file)
  networks = find_networks(content)
  if entry and entry not in networks:
    raise UserError(
      f'{file} has no entry {entry!r}; it has {_names(networks or content)}'
    )
  if not networks:
    raise UserError(f'{file} holds no weights: {_describe(content)}')
  if not entry and len(networks) > 1:
    raise UserError(
      f'{file} holds {len(networks)} networks, {_names(networks)}: choose one, '
      f'such as {file}:{next(iter(networks))}'
    )
  chosen = networks[entry or next(iter(networks))]
  return strip_prefixes(_to_arrays(chosen, str(file), say))


def _read_file(file: Path) -> Any:
  """Returns what the file holds, by its name's ending."""
  if not file.is_file():
    raise UserError(f'checkpoint {str(file)!r} does not exist or is no file')
  with file.open('rb') as opened:
    head = opened.read(512).lstrip().lower()
  if head.startswith((b'<!doctype', b'<html', b'<?xml')):
    raise UserError(
      f'{file} is a web page, not a checkpoint: the download did not work'
    )
  readers = {'.npz': _read_npz, '.safetensors': _read_safetensors}
  readers |= dict.fromkeys(TORCH, _read_torch)
  if file.suffix not in readers:
    raise UserError(
      f'{file} ends in {file.suffix!r}; what can be read ends in one of: '
      f'{", ".join(readers)}'
    )
  return readers[file.suffix](file)


def _damaged(file: Path, error: Exception) -> UserError:
  reason = (str(error).strip() or type(error).__name__).splitlines()[0]
  return UserError(
    f'{file} is damaged or cut off ({reason[:120]}); get it again'
  )


def _read_npz(file: Path) -> State:
  try:
    with np.load(file, allow_pickle=False) as opened:
      return dict(opened)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise _damaged(file, error) from None


def _read_safetensors(file: Path) -> State:
  """8 bytes with the length of a JSON header, the header, the arrays."""
  data = file.read_bytes()
  try:
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + size])
    header.pop('__metadata__', None)
    return {
      key: _slice(data[8 + size :], **about) for key, about in header.items()
    }
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise _damaged(file, error) from None


def _slice(data: bytes, dtype: str, shape: list, data_offsets: list):
  first, last = data_offsets
  array = np.frombuffer(data[first:last], _SAFETENSORS[dtype])
  return array.reshape(shape)


def _read_torch(file: Path) -> Any:
  """Reads what PyTorch saved, without running any of it."""
  try:
    import torch  # type: ignore[import-not-found]
  except ImportError:
    raise UserError(
      f'{file} needs PyTorch to be read: pip install torch, or save the '
      'weights as .safetensors or .npz'
    ) from None
  with file.open('rb') as opened:
    is_zip = opened.read(2) == b'PK'
  if is_zip and not zipfile.is_zipfile(file):
    raise _damaged(file, EOFError('its end is missing'))
  # Beside the weights: what carries no code and is often there.
  harmless = [argparse.Namespace, np.dtype, type(np.dtype('float64'))]
  scalar = np.float64(0).__reduce__()[0]
  harmless += [(scalar, f'numpy.{core}.multiarray.scalar') for core in
               ('core', '_core')]  # fmt: skip
  try:
    with torch.serialization.safe_globals(harmless):
      return torch.load(file, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    name = re.search(r'GLOBAL ([\w.]+)', str(error))
    if name is None:
      raise _damaged(file, error) from None
    raise UserError(
      f'{file} holds the object {name[1]}, not weights alone, and reading it '
      "would run code: with its authors' program save model.state_dict()"
    ) from None
  except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
    raise _damaged(file, error) from None


def _is_array(value: Any) -> bool:
  return hasattr(value, 'shape') and hasattr(value, 'dtype')


def find_networks(content: Any, name: str = '') -> dict[str, Mapping]:
  """Finds all dicts that hold the arrays of a network.

  Args:
    content: what a file holds.
    name: of this part, '' for the whole.

  Returns:
    Dicts by dotted name, such as 'state_dict' or 'ema.model'.
  """
  if not isinstance(content, Mapping) or _NO_NETWORK.search(name):
    return {}
  if any(isinstance(k, str) and _is_array(v) and len(v.shape) > 1
         for k, v in content.items()):  # fmt: skip
    return {name: content}
  networks = {}
  for key, value in content.items():
    if isinstance(key, str):
      networks |= find_networks(value, f'{name}.{key}' if name else key)
  return networks


def _names(content: Any) -> str:
  """The first names of a dict."""
  names = [repr(k) for k in content][:6] if isinstance(content, Mapping) else []
  more = ', ...' if names and len(content) > len(names) else ''
  return ', '.join(names) + more


def _describe(content: Any) -> str:
  """What a file holds that holds no weights."""
  if isinstance(content, Mapping):
    return f'its top keys are {_names(content) or "none"}'
  if isinstance(content, (list, tuple)):
    return f'it is a list of {len(content)} things, not a dict'
  return f'it is a {type(content).__name__}, not a dict'


def _to_arrays(
  network: Mapping, file: str, say: Callable[[str], None]
) -> State:
  """Leaves out what is no array, and widens half precision."""
  state, halves = {}, set()
  for key, value in network.items():
    if not _is_array(value):
      continue
    if (kind := str(value.dtype).removeprefix('torch.')).endswith('float16'):
      halves.add(kind)
    if hasattr(value, 'detach'):
      value = value.detach().float() if halves else value.detach()
      value = value.numpy()
    is_half = value.dtype in (np.float16, ml_dtypes.bfloat16)
    state[key] = value.astype(np.float32) if is_half else value
  if halves:
    say(f'{file} is in {" and ".join(sorted(halves))}: widened to float32')
  return state


def strip_prefixes(state: Mapping[str, np.ndarray]) -> State:
  """Removes PREFIXES from the keys.

  Args:
    state: arrays by name.

  Returns:
    The same arrays by shorter names.

  Raises:
    UserError: two keys become one.
  """
  pattern = re.compile(f'^({"|".join(map(re.escape, PREFIXES))})+')
  stripped, origin = {}, {}
  for key, value in state.items():
    name = pattern.sub('', key)
    if name in stripped:
      raise UserError(
        f'the checkpoint has {origin[name]!r} and {key!r}, which are the same '
        'weight of two networks: keep one of them'
      )
    stripped[name], origin[name] = np.asarray(value), key
  return stripped
