"""interop/torch_import.py against reference vectors of PyTorch programs."""

import pathlib

from helpers.torch_states import layout_state, template
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import models
from jax_robust_kd.core import UserError
from jax_robust_kd.interop import torch_import

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
CIFAR = {
  'mean': (0.4914, 0.4822, 0.4465),
  'std': (0.2471, 0.2435, 0.2616),
}
# name in the file -> (model, fields); all of them without BatchNorm's counters
CASES = {
  'ResNet18': ('resnet18', {}),
  'PreActResNet18_V1': ('preact_resnet18', {}),
  'PreActResNet18_V2_bn': ('preact_resnet18_v2', {}),
  'WRN-10-2': ('wide_resnet', {'depth': 10, 'width': 2}),
  'DMWRN-10-2_silu': ('dm_wide_resnet', {'depth': 10, 'width': 2, **CIFAR}),
}


LAYOUT_OF = {
  'ResNet18': 'resnet',
  'PreActResNet18_V1': 'preact_resnet',
  'PreActResNet18_V2_bn': 'preact_resnet',
  'WRN-10-2': 'wide_resnet',
  'DMWRN-10-2_silu': 'dm_wide_resnet',
}


@pytest.mark.parametrize('case', CASES)
def test_logits_and_input_gradients_are_the_reference_ones(case):
  name, fields = CASES[case]
  model = models.build(name, 10, fields)
  state = layout_state(model, LAYOUT_OF[case])
  variables = torch_import.import_state(state, model)
  with np.load(GOLDEN / 'architectures.npz') as file:
    image = file['x'].transpose(0, 2, 3, 1)
    label = file['y']
    logits = file[f'{case}/logits']
    gradient = file[f'{case}/xgrad'].transpose(0, 2, 3, 1)

  @jax.jit
  def run(image):
    out = models.forward(model, variables, image, 'eval').logits
    chosen = jnp.take_along_axis(jax.nn.log_softmax(out), label[:, None], 1)
    return -jnp.sum(chosen), out

  (_, ours), slope = jax.value_and_grad(run, has_aux=True)(jnp.asarray(image))
  for mine, theirs in ((ours, logits), (slope, gradient)):
    scale = np.max(np.abs(theirs))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
  'name, fields, layout',
  [
    ('resnet20', {}, 'resnet'),
    ('resnet50', {'width': 4}, 'resnet'),
    ('resnet50', {'width': 4, 'stem': '7x7'}, 'torchvision_resnet'),
    ('dm_preact_resnet18', {'width': 4}, 'dm_preact_resnet'),
    ('mobilenet_v2', {}, 'mobilenet_v2'),
  ],
)
def test_the_other_layouts_fill_every_variable(name, fields, layout):
  model = models.build(name, 10, fields)
  variables = torch_import.import_state(layout_state(model, layout), model)
  wanted = jax.tree.map(lambda a: a.shape, template(model))
  assert jax.tree.map(lambda a: a.shape, variables) == wanted


# Keys as PyTorch prints them, so that a wrong map cannot agree with itself.
@pytest.mark.parametrize(
  'layout, layer, stage, block, key',
  [
    ('resnet', 'shortcut_norm', 2, 0, 'layer2.0.shortcut.1'),
    ('torchvision_resnet', 'shortcut_norm', 2, 0, 'layer2.0.downsample.1'),
    ('torchvision_resnet', 'head', 0, 0, 'fc'),
    ('preact_resnet', 'shortcut', 3, 0, 'layer3.0.shortcut.0'),
    ('dm_preact_resnet', 'conv2', 4, 1, 'layer_3.1.conv_2d_2'),
    ('wide_resnet', 'shortcut', 1, 0, 'block1.layer.0.convShortcut'),
    ('dm_wide_resnet', 'norm2', 3, 2, 'layer.2.block.2.batchnorm_1'),
    ('mobilenet_v2', 'conv3', 2, 0, 'layers.3.conv3'),
    ('mobilenet_v2', 'shortcut_norm', 4, 3, 'layers.16.shortcut.1'),
    ('mobilenet_v2', 'final_norm', 0, 0, 'bn2'),
  ],
)
def test_names_are_pytorch_s(layout, layer, stage, block, key):
  assert torch_import.LAYOUTS[layout][2](layer, stage, block) == key


@pytest.fixture(scope='module')
def wide():
  model = models.build('wide_resnet', 10, {'depth': 10, 'width': 1})
  return model, layout_state(model, 'wide_resnet')


def test_prefixes_counters_and_unused_blocks_are_dropped(wide):
  model, state = wide
  noisy = {f'module.model.{k}': v for k, v in state.items()}
  noisy['module.bn1.num_batches_tracked'] = np.array(7)
  noisy['module.sub_block1.layer.0.conv1.weight'] = np.zeros((2, 2, 3, 3))
  one = torch_import.import_state(state, model)
  two = torch_import.import_state(noisy, model)
  jax.tree.map(np.testing.assert_array_equal, one, two)


def without(state, key):
  return {k: v for k, v in state.items() if k != key}


SPOILED = {
  'missing': (lambda s: without(s, 'fc.bias'), 'lacks 1 keys'),
  'no stem': (lambda s: without(s, 'conv1.weight'), 'lacks 1 keys'),
  'unused': (lambda s: {**s, 'extra': np.zeros(3)}, 'unused 1 keys'),
  'shape': (lambda s: {**s, 'fc.bias': np.zeros(3)}, "'fc.bias'"),
  'variance': (
    lambda s: {**s, 'bn1.running_var': -s['bn1.running_var']},
    'variance below 0',
  ),
  'twice': (lambda s: {**s, 'module.fc.bias': s['fc.bias']}, 'two networks'),
  'nan': (lambda s: {**s, 'fc.bias': np.full(10, np.nan)}, 'not finite'),
  'mean': (lambda s: {**s, 'mu': np.full((3, 1, 1), 0.5)}, 'mean='),
  'layout': (lambda s: {'a': np.zeros(3)}, 'known layouts'),
}


@pytest.mark.parametrize('spoil', SPOILED)
def test_a_checkpoint_that_does_not_fit_is_refused(wide, spoil):
  model, state = wide
  change, words = SPOILED[spoil]
  with pytest.raises(UserError, match=words):
    torch_import.import_state(change(state), model)


@pytest.mark.parametrize(
  'name, fields, words',
  [
    ('wide_resnet', {'depth': 16, 'width': 1}, 'lacks'),
    ('dm_wide_resnet', {'depth': 10, 'width': 1}, "padding 'symmetric'"),
    ('resnet20', {}, 'WideResNet'),
  ],
)
def test_weights_of_another_model_are_refused(wide, name, fields, words):
  with pytest.raises(UserError, match=words):
    torch_import.import_state(wide[1], models.build(name, 10, fields))


def test_a_mean_in_the_checkpoint_must_be_the_model_s(wide):
  model, state = wide
  state = {**state, 'mu': np.full((3, 1, 1), 0.5), 'sigma': np.full(3, 0.25)}
  model = model.clone(mean=(0.5,) * 3, std=(0.25,) * 3)
  assert torch_import.import_state(state, model)['params']
