"""models/torch_import.py against reference vectors of PyTorch programs."""

import importlib.util
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import models
from jax_robust_kd.models import torch_import

GOLDEN = pathlib.Path(__file__).parent / 'golden'
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


def _load_fill():
  spec = importlib.util.spec_from_file_location('fill', GOLDEN / 'fill.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.fill


fill = _load_fill()


def template(model, channels=3):
  image = jnp.zeros((1, 8, 8, channels))
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )


def torch_state(model, key_of):
  """A state_dict of the model, made from the names alone."""
  state = {}
  for path, leaf in flax.traverse_util.flatten_dict(template(model)).items():
    shape = leaf.shape
    if len(shape) == 4:
      shape = (shape[3], shape[2], shape[0], shape[1])
    key = key_of(path)
    state[key] = fill(key, shape[::-1] if len(shape) == 2 else shape)
  return state


def layout_state(model, layout):
  rule = torch_import.LAYOUTS[layout][2]
  return torch_state(model, lambda path: torch_import._torch_key(path, rule))


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
