"""interop/read.py: files as other programs write them, and as they break."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.core import UserError
from jax_robust_kd.interop.read import find_networks, read_state, strip_prefixes

WEIGHTS = {
  'conv1.weight': np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
  'bn1.running_var': np.ones(2, np.float32),
}
TYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}


def write_safetensors(path, state):
  """The format by its description: length, JSON header, arrays."""
  header, data = {'__metadata__': {'format': 'pt'}}, b''
  for key, value in state.items():
    ends = [len(data), len(data) + value.nbytes]
    header[key] = {
      'dtype': TYPES[value.dtype.name],
      'shape': list(value.shape),
      'data_offsets': ends,
    }
    data += value.tobytes()
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def same(state):
  assert state.keys() == WEIGHTS.keys()
  for key, value in WEIGHTS.items():
    assert state[key].dtype == np.float32
    np.testing.assert_array_equal(state[key], value)


@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.model.'])
def test_npz_and_safetensors_are_read_without_pytorch(tmp_path, prefix):
  state = {prefix + key: value for key, value in WEIGHTS.items()}
  np.savez(tmp_path / 'a.npz', **state)
  write_safetensors(tmp_path / 'a.safetensors', state)
  same(read_state(str(tmp_path / 'a.npz')))
  same(read_state(str(tmp_path / 'a.safetensors')))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_is_widened_and_said(tmp_path, dtype):
  said = []
  half = {k: np.asarray(jnp.asarray(v, dtype)) for k, v in WEIGHTS.items()}
  write_safetensors(tmp_path / 'a.safetensors', half)
  same(read_state(str(tmp_path / 'a.safetensors'), said.append))
  assert len(said) == 1 and f'{dtype}: widened to float32' in said[0]


CONTENTS = {
  'state_dict': {'epoch': 3, 'state_dict': WEIGHTS},
  'nested.net': {'nested': {'net': WEIGHTS}, 'best_acc': 0.5},
  'params': {'params': WEIGHTS, 'optimizer': {'state': {'m': np.ones((2, 2))}}},
  '': {**WEIGHTS, 'epoch': 3},
}


@pytest.mark.parametrize('name', CONTENTS)
def test_wrappers_are_opened(name):
  networks = find_networks(CONTENTS[name])
  assert networks.keys() == {name}
  assert networks[name]['conv1.weight'] is WEIGHTS['conv1.weight']


def test_two_networks_are_named():
  both = {'state_dict': WEIGHTS, 'state_dict_ema': WEIGHTS}
  assert find_networks(both).keys() == both.keys()


def test_a_key_with_and_without_a_prefix_is_refused():
  with pytest.raises(UserError, match='same weight of two networks'):
    strip_prefixes({**WEIGHTS, 'module.conv1.weight': np.ones(3)})


def write(path, data):
  path.write_bytes(data)


def cut(path):
  write_safetensors(path, WEIGHTS)
  path.write_bytes(path.read_bytes()[:-9])


BROKEN = {
  'html.pt': (lambda p: write(p, b'\n<!DOCTYPE html><p>Sign in'), 'web page'),
  'bad.npz': (lambda p: write(p, b'PK\x03\x04 and no more'), 'damaged'),
  'bad.safetensors': (lambda p: write(p, b'\xff' * 40), 'damaged'),
  'cut.safetensors': (cut, 'damaged'),
  'list.safetensors': (lambda p: write(p, (2).to_bytes(8, 'little') + b'[]'),
                       'damaged'),
  'empty.npz': (lambda p: np.savez(p), 'top keys are none'),
  'few.npz': (lambda p: np.savez(p, a=np.ones(3)), "top keys are 'a'"),
  'weights.bin': (lambda p: write(p, b'1234'), "ends in '.bin'"),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path, name):
  make, words = BROKEN[name]
  make(tmp_path / name)
  with pytest.raises(UserError, match=words) as error:
    read_state(str(tmp_path / name))
  assert name in str(error.value) and '\n' not in str(error.value)


def test_a_missing_file_and_a_missing_entry_are_named(tmp_path):
  with pytest.raises(UserError, match='does not exist'):
    read_state(str(tmp_path / 'absent.npz'))
  np.savez(tmp_path / 'a.npz', **WEIGHTS)
  with pytest.raises(UserError, match="no entry 'ema'"):
    read_state(str(tmp_path / 'a.npz') + ':ema')


def test_pytorch_is_asked_for_with_the_line_that_installs_it(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  (tmp_path / 'a.pth').write_bytes(b'PK')
  with pytest.raises(UserError, match='pip install torch'):
    read_state(str(tmp_path / 'a.pth'))


class Network:
  """Stands for a class that a pickle would import, and so run."""


@pytest.fixture
def torch():
  return pytest.importorskip('torch')


@pytest.mark.torch
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('ending', ['.pt', '.pth', '.ckpt', '.tar'])
def test_files_of_pytorch(torch, tmp_path, ending, zipped):
  import argparse

  path = tmp_path / f'a{ending}'
  tensors = {f'module.{k}': torch.tensor(v) for k, v in WEIGHTS.items()}
  content = {
    'model_state_dict': tensors,
    'args': argparse.Namespace(lr=0.1),
    'best_acc': np.float64(0.5),
    'epoch': 3,
  }
  torch.save(content, path, _use_new_zipfile_serialization=zipped)
  same(read_state(str(path)))
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(UserError, match='damaged'):
    read_state(str(path))


@pytest.mark.torch
def test_what_pytorch_saved_and_is_no_state_dict(torch, tmp_path):
  path = tmp_path / 'a.pt'
  tensors = {k: torch.tensor(v).bfloat16() for k, v in WEIGHTS.items()}
  torch.save({'state_dict': tensors, 'state_dict_ema': tensors}, path)
  with pytest.raises(UserError, match="'state_dict', 'state_dict_ema': choose"):
    read_state(str(path))
  said = []
  same(read_state(f'{path}:state_dict_ema', said.append))
  assert 'bfloat16' in said[0]
  torch.save([tensors], path)
  with pytest.raises(UserError, match='list of 1 things'):
    read_state(str(path))
  torch.save(Network(), path)
  with pytest.raises(UserError, match=r'\.Network, .*run code'):
    read_state(str(path))


@pytest.mark.torch
def test_files_of_safetensors(tmp_path):
  numpy = pytest.importorskip('safetensors.numpy')
  numpy.save_file(WEIGHTS, str(tmp_path / 'a.safetensors'))
  same(read_state(str(tmp_path / 'a.safetensors')))
