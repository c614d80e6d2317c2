"""Exports: each artefact against the network, run by its own runtime."""

from functools import cache, partial
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import models
from jax_robust_kd.core import UserError
from jax_robust_kd.interop import litert, onnx, parity, stablehlo, torch_export
from jax_robust_kd.interop.torch_import import import_state

# Name, fields, shape of the images.
NETWORKS = {
  'small_resnet': (dict(depth=8, width=4), (8, 8, 1)),
  'resnet18': (dict(width=4, mean=(0.4,) * 3, std=(0.2,) * 3), (16, 16, 3)),
  'resnet50': (dict(width=4), (16, 16, 3)),
  'preact_resnet18': (dict(width=4), (16, 16, 3)),
  'preact_resnet18_v2': (dict(width=4), (16, 16, 3)),
  'dm_preact_resnet18': (dict(width=4), (15, 16, 3)),
  'wide_resnet': (dict(depth=10, width=1), (16, 16, 3)),
  'dm_wide_resnet': (dict(depth=10, width=1), (15, 16, 3)),
  'mobilenet_v2': ({}, (16, 16, 3)),
}


@cache
def network(name):
  """Returns model, variables, logits function and image shape."""
  fields, shape = NETWORKS[name]
  model = models.build(name, 10, fields)
  template = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree_util.tree_map_with_path(partial(_leaf, rng), template)

  def logits(image):
    return models.forward(model, variables, image, 'eval').logits

  return model, variables, logits, shape


def _leaf(rng, path, leaf):
  name = path[-1].key
  if name in ('scale', 'var'):
    return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
  return (0.2 * rng.normal(size=leaf.shape)).astype(np.float32)


def images(shape, count=5):
  return np.random.default_rng(1).random((count, *shape), np.float32)


def error(found, expected):
  return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
  'name', [n for n in NETWORKS if not n.startswith('dm_')]
)
def test_a_state_dict_comes_back_as_it_left(name):
  model, variables, _, _ = network(name)
  state = torch_export.export_state(variables, model)
  back = import_state(state, model)
  jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_the_python_file_stands_alone():
  model, _, _, _ = network('small_resnet')
  source = torch_export.model_source(model, 1, ('a', "b'\n"))
  assert 'jax_robust_kd import' not in source
  compiled = compile(source, 'model.py', 'exec')
  assert compiled and repr(['a', "b'\n"]) in source


def test_stablehlo_takes_any_number_of_images():
  _, _, logits, shape = network('small_resnet')
  run = stablehlo.make_runner(stablehlo.to_stablehlo(logits, shape))
  for count in (1, 3):
    image = images(shape, count)
    np.testing.assert_allclose(run(image), logits(image), rtol=1e-4, atol=1e-5)


def test_an_export_holds_plain_convolutions():
  """Traced for the CPU at hand it would hold none."""
  _, _, logits, shape = network('mobilenet_v2')
  from jax import export

  def text(target_name):
    from jax_robust_kd.runtime import target

    with target.compile_for(target_name):
      image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
      return export.export(jax.jit(lambda x: logits(x)))(image).mlir_module()

  assert text('portable').count('stablehlo.convolution') == 57
  assert text('cpu').count('stablehlo.convolution') < 57


def test_parity_counts_what_is_lost():
  label = np.array([0, 1, 2, 0])
  right = np.eye(3)[label].astype(np.float32)
  wrong = right.copy()
  wrong[3] = [0, 1, 0]
  image = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
  attacked = {'pgd': (np.array([0, 1]), image[:2] + 10)}

  def reference(x):
    return right[x.ravel().astype(int) % 10]

  def artefact(x):
    found = wrong[x.ravel().astype(int) % 10].copy()
    found[x.ravel() >= 11] = [1, 0, 0]  # the second falls for the attack
    return found

  found = parity.compare(artefact, reference, image, label, attacked)
  assert found['flips'] == 1 and found['relative_error'] == 1
  assert (found['clean'], found['clean_reference']) == (75, 100)
  assert found['stored_attacks'] == {
    'pgd': {'upper_bound': 50.0, 'reference': 100.0}
  }
  assert found['loses'] == 50


def test_a_missing_extra_is_a_sentence(monkeypatch):
  def missing(name):
    raise ImportError(name)

  monkeypatch.setattr(litert, 'import_module', missing)
  with pytest.raises(UserError, match=r'pip install "jax_robust_kd\[litert\]"'):
    litert.to_litert(lambda x: x, (1, 1, 1))


def test_a_network_of_ones_own_has_no_pytorch_form():
  with pytest.raises(UserError, match='stablehlo'):
    torch_export.export_state({}, object())  # type: ignore[arg-type]


@pytest.mark.parametrize('name', ['small_resnet', 'resnet18', 'mobilenet_v2'])
def test_litert(name):
  pytest.importorskip('litert_converter')
  pytest.importorskip('ai_edge_litert')
  _, _, logits, shape = network(name)
  content = litert.to_litert(logits, shape)
  image = images(shape)
  assert error(litert.make_runner(content)(image), logits(image)) < 1e-5
  counts = litert.count_operations(content)
  if name == 'mobilenet_v2':
    assert counts['DEPTHWISE_CONV_2D'] == 17 and counts['CONV_2D'] == 40
  assert counts.get('MUL', 0) == 0, 'BatchNorm is folded'


@pytest.mark.parametrize('full', [False, True])
def test_litert_in_8_bits(full):
  pytest.importorskip('litert_converter')
  pytest.importorskip('ai_edge_quantizer')
  _, _, logits, shape = network('resnet18')
  content = litert.to_litert(logits, shape)
  small = litert.quantize(content, images(shape, 20), full)
  assert len(small) < len(content)
  image = images(shape)
  found, expected = litert.make_runner(small)(image), logits(image)
  # Random weights add up the rounding of 18 layers: 0.36 at worst was seen.
  median = np.median(np.abs(found - expected)) / np.abs(expected).max()
  assert 1e-6 < median < 0.1


@pytest.mark.torch
@pytest.mark.parametrize('name', NETWORKS)
def test_torch(name, tmp_path):
  import torch  # type: ignore[import-not-found]

  model, variables, logits, shape = network(name)
  torch_export.write_torch(tmp_path, variables, model, tuple('abcdefghij'))
  path = tmp_path / 'model.py'
  spec = importlib.util.spec_from_file_location('exported', path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  loaded = module.load(tmp_path / 'model.pt')
  image = images(shape)
  with torch.no_grad():
    found = loaded(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
  assert error(found.numpy(), logits(image)) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize('name', ['small_resnet', 'mobilenet_v2'])
def test_onnx(name, tmp_path):
  model, variables, logits, shape = network(name)
  onnx.to_onnx(tmp_path / 'model.onnx', variables, model, shape)
  run = onnx.make_runner(tmp_path / 'model.onnx')
  for count in (1, 4):
    image = images(shape, count)
    assert error(run(image), logits(image)) < 1e-5
