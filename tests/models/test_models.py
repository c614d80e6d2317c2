"""models: published sizes, the contract of every entry, BatchNorm's modes."""

import functools
import inspect
import pathlib

import flax.linen as nn
from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import models
from jax_robust_kd.core import UserError
from jax_robust_kd.models import layers

# Weights at 10 classes, as published (or as PyTorch counts the originals).
PUBLISHED = {
  'resnet18': ({}, 11_173_962),
  'resnet34': ({}, 21_282_122),
  'resnet50': ({}, 23_520_842),
  'small_resnet': ({'depth': 20, 'width': 16}, 269_722),
  'resnet20': ({}, 269_722),
  'resnet32': ({}, 464_154),
  'resnet56': ({}, 853_018),
  'preact_resnet18': ({}, 11_171_146),
  'preact_resnet18_v2': ({}, 11_172_170),
  'dm_preact_resnet18': ({}, 12_548_426),
  'wide_resnet': ({'depth': 34, 'width': 10}, 46_160_474),
  'dm_wide_resnet': ({'depth': 28, 'width': 10}, 36_479_194),
  'mobilenet_v2': ({}, 2_296_922),
}
# The same modules in small, so that they run in a test.
SMALL = {
  'resnet18': {'width': 4},
  'resnet50': {'width': 4},
  'small_resnet': {'depth': 8, 'width': 4},
  'preact_resnet18': {'width': 4},
  'dm_preact_resnet18': {'width': 4},
  'wide_resnet': {'depth': 10, 'width': 1},
  'dm_wide_resnet': {'depth': 10, 'width': 1},
  'mobilenet_v2': {},
}


def shapes(name, fields, image=(2, 32, 32, 3), num_classes=10):
  """Shapes of ((logits, features), variables), nothing computed."""
  model = models.build(name, num_classes, fields)
  return jax.eval_shape(
    functools.partial(model.init_with_output, train=True),
    jax.random.key(0),
    jnp.zeros(image),
  )


@functools.cache
def small(channels=3, **fields):
  """A small network, its variables and some images of two brightnesses."""
  fields = {'depth': 8, 'width': 4, **fields}
  model = models.build('small_resnet', 10, fields)
  image = jax.random.uniform(jax.random.key(1), (4, 8, 8, channels))
  return model, models.init(model, jax.random.key(0), image), image


@functools.partial(jax.jit, static_argnums=(0, 3))
def run(model, variables, image, mode):
  return models.forward(model, variables, image, mode)


def moved(before, after) -> bool:
  pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
  return any(bool(jnp.any(a != b)) for a, b in pairs)


def test_every_model_has_a_published_size_here():
  assert PUBLISHED.keys() == models.MODELS.keys()


@pytest.mark.parametrize('name', PUBLISHED)
def test_number_of_weights_is_the_published_one(name):
  fields, count = PUBLISHED[name]
  _, variables = shapes(name, fields)
  assert models.num_params(variables['params']) == count


def test_wide_resnet_28_10_has_the_published_size():
  _, variables = shapes('wide_resnet', {'depth': 28, 'width': 10})
  assert models.num_params(variables['params']) == 36_479_194


def test_every_module_is_registered():
  """A Flax module of a model file that nobody can name is a mistake."""
  folder = pathlib.Path(models.__file__).parent
  registered = {getattr(m, 'func', m) for m in models.MODELS.values()}
  files = {p.stem for p in folder.glob('*.py')}
  files -= {'__init__', 'conv', 'layers', 'narrow_conv', 'torch_import'}
  for stem in files:
    module = inspect.importlib.import_module(f'jax_robust_kd.models.{stem}')
    found = {
      c
      for n, c in vars(module).items()
      if inspect.isclass(c)
      and issubclass(c, nn.Module)
      and c.__module__ == module.__name__
      and not n.startswith('_')
    }
    assert found and found <= registered, stem


@pytest.mark.parametrize(
  'image', [(2, 32, 32, 3), (2, 8, 8, 1), (2, 64, 64, 3), (2, 33, 47, 3)]
)
@pytest.mark.parametrize('name', SMALL)
def test_logits_and_features_for_any_size(name, image):
  (logits, features), _ = shapes(name, SMALL[name], image, 7)
  assert logits.shape == (2, 7)
  stages = sorted(set(features) - {'stem', 'pooled'})
  assert stages == [f'stage{i + 1}' for i in range(len(stages))]
  assert len(stages) == (3 if 'wide' in name or 'small' in name else 4)
  assert features['pooled'].ndim == 2
  assert features['stem'].shape[:3] == image[:3]
  for i, stage in enumerate(stages):
    rows, columns = (-(-n // 2**i) for n in image[1:3])
    assert features[stage].shape[:3] == (2, rows, columns)


@pytest.mark.parametrize('name', SMALL)
def test_bfloat16_keeps_weights_statistics_and_logits_in_float32(name):
  fields = {**SMALL[name], 'dtype': 'bfloat16'}
  (logits, features), variables = shapes(name, fields)
  assert logits.dtype == features['pooled'].dtype == jnp.float32
  assert features['stage1'].dtype == jnp.bfloat16
  assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', SMALL)
def test_bfloat16_has_float32_gradients(name):
  fields = {**SMALL[name], 'dtype': 'bfloat16'}
  model = models.build(name, 10, fields)
  _, variables = shapes(name, fields)

  def loss(variables, image):
    return jnp.sum(models.forward(model, variables, image, 'train').logits)

  slopes = jax.eval_shape(
    jax.grad(loss, (0, 1)), variables, jnp.zeros((2, 32, 32, 3))
  )
  assert {a.dtype for a in jax.tree.leaves(slopes)} == {jnp.dtype('float32')}


def test_bfloat16_computes_about_the_same():
  model, variables, image = small()
  half = model.clone(dtype=jnp.bfloat16)
  exact = run(model, variables, image, 'train').logits
  rough = run(half, variables, image, 'train').logits
  assert rough.dtype == jnp.float32
  scale = float(jnp.max(jnp.abs(exact)))
  error = float(jnp.max(jnp.abs(exact - rough)))
  assert 0 < error < 0.1 * scale


def test_modes_move_and_use_what_the_table_says():
  model, variables, image = small()
  before = variables['batch_stats']
  out = {m: run(model, variables, image, m) for m in models.MODES}
  assert moved(before, out['train'].batch_stats)
  assert not moved(before, out['batch'].batch_stats)
  assert not moved(before, out['eval'].batch_stats)
  np.testing.assert_array_equal(out['train'].logits, out['batch'].logits)
  assert moved(out['train'].logits, out['eval'].logits)


def test_eval_does_not_look_at_the_other_images():
  model, variables, image = small()
  alone = run(model, variables, image[:1], 'eval').logits
  among = run(model, variables, image, 'eval').logits
  np.testing.assert_allclose(alone, among[:1], rtol=1e-5, atol=1e-6)


def test_normalization_is_inside():
  model, variables, image = small()
  mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
  inside = model.clone(mean=mean, std=std)
  one = run(inside, variables, image, 'eval').logits
  outside = (image - jnp.asarray(mean)) / jnp.asarray(std)
  two = run(model, variables, outside, 'eval').logits
  np.testing.assert_allclose(one, two, rtol=1e-6)


def both_norms(x, axis_name=None):
  """Our BatchNorm and Flax's, each with variables of its own."""
  ours = layers.BatchNorm(True, axis_name)
  theirs = nn.BatchNorm(
    use_running_average=False,
    momentum=0.9,
    use_fast_variance=False,
    axis_name=axis_name,
  )
  key = jax.random.key(3)
  scale = 1 + 0.1 * jax.random.normal(key, x.shape[-1:])
  params = {'scale': scale, 'bias': scale - 1}
  stats = {'mean': scale, 'var': scale**2}
  return ours, theirs, {'params': params, 'batch_stats': stats}


def test_batch_norm_is_flax_s_with_all_its_gradients():
  x = 3 + jax.random.normal(jax.random.key(0), (4, 3, 3, 5))
  ours, theirs, variables = both_norms(x)

  def loss(module, x, variables):
    y, stats = module.apply(variables, x, mutable=['batch_stats'])
    extra = jax.tree.leaves(jax.tree.map(lambda a: jnp.sum(a**3), stats))
    return jnp.sum(jnp.sin(y) * jnp.arange(5)) + sum(extra), (y, stats)

  def twice(module):
    def inner(x):
      slope = jax.grad(loss, 1, has_aux=True)(module, x, variables)[0]
      return jnp.sum(slope**2)

    first = jax.grad(loss, (1, 2), has_aux=True)
    return first(module, x, variables), jax.grad(inner)(x)

  one, two = (jax.jit(twice, static_argnums=0)(m) for m in (ours, theirs))
  for path, a in flatten_dict(_tree(one)).items():
    b = flatten_dict(_tree(two))[path]
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=str(path))


def _tree(value):
  leaves, _ = jax.tree_util.tree_flatten_with_path(value)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_synchronised_batch_norm_is_that_of_the_whole_batch():
  x = jax.random.normal(jax.random.key(0), (6, 2, 2, 3))
  ours, _, variables = both_norms(x)
  split = layers.BatchNorm(True, 'devices')

  def slope(module, x):
    def loss(x):
      y, stats = module.apply(variables, x, mutable=['batch_stats'])
      return jnp.sum(jnp.sin(y) * x**2), stats

    return jax.grad(loss, has_aux=True)(x)

  whole, stats = jax.jit(slope, static_argnums=0)(ours, x)
  parts = jax.vmap(functools.partial(slope, split), axis_name='devices')
  parts = jax.jit(parts)
  pieces, both = parts(x.reshape(2, 3, 2, 2, 3))
  np.testing.assert_allclose(pieces.reshape(x.shape), whole, atol=2e-5)
  for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(stats), strict=True):
    np.testing.assert_allclose(a[0], b, rtol=1e-5)


def test_variance_survives_a_large_mean():
  x = 1000 + jax.random.normal(jax.random.key(0), (64, 4, 4, 2))
  ours, _, variables = both_norms(x)
  _, moved_to = ours.apply(variables, x, mutable=['batch_stats'])
  old = variables['batch_stats']['var']
  found = (moved_to['batch_stats']['var'] - 0.9 * old) / 0.1
  np.testing.assert_allclose(found, np.var(x, axis=(0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize(
  'name, fields, words',
  [
    ('resnet19', {}, "did you mean 'resnet18'"),
    ('resnet18', {'widht': 3}, "'width'"),
    ('resnet18', {'num_classes': 3}, "no field 'num_classes'"),
    ('wide_resnet', {'dtype': 'int32'}, 'int32'),
    ('wide_resnet', {'dtype': 'float23'}, 'float23'),
    ('wide_resnet', {'mean': 0.5}, 'mean'),
  ],
)
def test_build_refuses_and_names_the_remedy(name, fields, words):
  with pytest.raises(UserError, match=words):
    models.build(name, 10, fields)


@pytest.mark.parametrize(
  'name, fields, words',
  [
    ('wide_resnet', {'depth': 29}, '6n \\+ 4'),
    ('small_resnet', {'depth': 18}, '6n \\+ 2'),
    ('resnet18', {'depth': 19}, 'depth 19'),
    ('resnet18', {'activation': 'gelu'}, "'gelu'"),
    ('resnet18', {'padding': 'valid'}, "'valid'"),
    ('resnet18', {'mean': (0.5,), 'std': (0.2,)}, '3 channels'),
    ('resnet18', {'mean': (0.5, 0.5, 0.5)}, '3 channels'),
  ],
)
def test_wrong_fields_are_refused_at_the_first_call(name, fields, words):
  with pytest.raises(UserError, match=words):
    shapes(name, fields)


def test_unknown_mode_is_refused():
  model, variables, image = small()
  with pytest.raises(UserError, match="'test'"):
    models.forward(model, variables, image, 'test')
