"""interop/recognize.py: architectures from keys and shapes alone."""

from helpers.torch_states import layout_state
import jax
import numpy as np
import pytest

from jax_robust_kd import models
from jax_robust_kd.core import UserError
from jax_robust_kd.interop import recognize
from jax_robust_kd.interop.torch_import import import_state

# model, fields, classes, layout
CASES = [
  ('wide_resnet', {'depth': 16, 'width': 2}, 10, 'wide_resnet'),
  ('dm_wide_resnet', {'depth': 10, 'width': 1}, 100, 'dm_wide_resnet'),
  ('resnet18', {'width': 4, 'stem': '3x3'}, 10, 'resnet'),
  ('resnet34', {'width': 4, 'stem': '3x3'}, 200, 'resnet'),
  ('resnet50', {'width': 4, 'stem': '7x7'}, 1000, 'torchvision_resnet'),
  ('small_resnet', {'depth': 20, 'width': 4}, 10, 'resnet'),
  ('preact_resnet18', {'width': 4}, 10, 'preact_resnet'),
  ('preact_resnet18_v2', {'width': 4}, 10, 'preact_resnet'),
  ('dm_preact_resnet18', {'width': 4}, 10, 'dm_preact_resnet'),
  ('mobilenet_v2', {}, 10, 'mobilenet_v2'),
]


@pytest.mark.parametrize('name,fields,classes,layout', CASES)
def test_the_architecture_is_found(name, fields, classes, layout):
  state = layout_state(models.build(name, classes, fields), layout)
  found = recognize.recognize({f'module.{k}': v for k, v in state.items()})
  assert found[:3] == (name, classes, fields)


@pytest.fixture(scope='module')
def wide():
  model = models.build('wide_resnet', 10, {'depth': 10, 'width': 1})
  return model, layout_state(model, 'wide_resnet')


def test_a_file_becomes_a_model_and_what_keys_cannot_tell_is_said(
  tmp_path, wide
):
  model, state = wide
  state = {**state, 'mu': np.full(3, 0.5), 'sigma': np.full(3, 0.25)}
  np.savez(tmp_path / 'a.npz', **state)
  said = []
  got, variables = recognize.load(str(tmp_path / 'a.npz'), say=said.append)
  assert got == model.clone(mean=(0.5,) * 3, std=(0.25,) * 3)
  jax.tree.map(
    np.testing.assert_array_equal, variables, import_state(wide[1], model)
  )
  assert len(said) == 1 and "activation ('relu' is assumed)" in said[0]


def test_a_refusal_says_what_would_fit(tmp_path, wide):
  np.savez(tmp_path / 'a.npz', **wide[1])
  wrong = recognize.Architecture('wide_resnet', 10, {'depth': 16, 'width': 1})
  with pytest.raises(UserError) as error:
    recognize.load(str(tmp_path / 'a.npz'), wrong)
  assert "first are ['block1.layer.1." in str(error.value)
  assert 'wide_resnet of 10 classes with depth=10, width=1' in str(error.value)


def test_what_is_no_network_of_ours_is_refused(wide):
  state = {k: v for k, v in wide[1].items() if not k.startswith('fc.')}
  with pytest.raises(UserError, match="no 'fc.weight'"):
    recognize.recognize(state)
  deep = models.build('resnet18', 10, {'width': 1})
  state = layout_state(deep, 'resnet')
  state['layer1.2.conv1.weight'] = state['layer1.1.conv1.weight']
  with pytest.raises(UserError, match=r'\(3, 2, 2, 2\) blocks'):
    recognize.recognize(state)
