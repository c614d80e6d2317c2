"""A finished run as a function of images, without its training data."""

import json
import subprocess
import sys

from helpers.saved_runs import save_run
from jax.tree_util import Partial
import numpy as np
import pytest

import jax_robust_kd
from jax_robust_kd import checks, networks
from jax_robust_kd.__main__ import main
from jax_robust_kd.attacks import Budget, autoattack, batching
from jax_robust_kd.core import UserError
from jax_robust_kd.workdir import read_config


@pytest.fixture(scope='module')
def named(digits):
  return digits._replace(
    name='npz:gone.npz', class_names=tuple(f'digit {i}' for i in range(10))
  )


@pytest.fixture(scope='module')
def run(named, tmp_path_factory):
  """A run whose data set is not there, with results."""
  folder = tmp_path_factory.mktemp('load') / 'run'
  save_run(folder, named)
  (folder / 'results.json').write_text(json.dumps({'clean_acc': 50.0}))
  return folder


@pytest.fixture(scope='module')
def model(run):
  return jax_robust_kd.load(run)


def reference(run, named, images):
  network = networks.load_network(str(run), named)
  forward = networks.in_precision(network, 'float32')
  return np.asarray(forward(network.variables, images, 'eval').logits)


def test_logits_of_any_kind_and_number_of_images(run, named, model):
  raw = np.asarray(named.test.image[:37])
  expected = reference(run, named, raw / np.float32(255))
  found = model(raw)
  assert found.shape == (37, 10) and found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(model(raw / np.float32(255)), found)
  np.testing.assert_array_equal(model(raw / 255.0), found)  # float64
  np.testing.assert_array_equal(model(raw[5]), found[5])
  assert model(raw[:0]).shape == (0, 10)


def test_one_program_for_any_number(model, named, monkeypatch):
  compiled = []
  original = batching._compile
  monkeypatch.setattr(
    batching, '_compile', lambda *a: compiled.append(1) or original(*a)
  )
  batching.forget_programs()
  raw = np.asarray(named.test.image[:70])
  for count in (1, 3, 16, 70):
    model(raw[:count])
  model(raw[0])
  assert len(compiled) == 1


def test_classes_and_probabilities(model, named):
  raw = np.asarray(named.test.image[:9])
  logits = model(raw)
  names, probabilities = model.predict(raw)
  assert names == [f'digit {i}' for i in logits.argmax(1)]
  np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
  odds = np.log(probabilities[:, 0] / probabilities[:, 1])
  np.testing.assert_allclose(odds, logits[:, 0] - logits[:, 1], atol=1e-4)
  name, one = model.predict(raw[2])
  assert name == names[2]
  np.testing.assert_array_equal(one, probabilities[2])


def test_what_is_known_of_the_run(run, model):
  assert model.class_names[3] == 'digit 3' and model.image_shape == (8, 8, 1)
  assert model.card == {'clean_acc': 50.0}
  assert model.config.to_dict() == read_config(run).to_dict()
  assert set(model.variables) == {'params', 'batch_stats'}
  output = model.forward(model.variables, np.zeros((2, 8, 8, 1)), 'eval')
  assert 'pooled' in output.features
  assert isinstance(model.as_partial(), Partial)


def test_it_is_attacked_and_checked_as_it_is(model, named):
  raw = np.asarray(named.test.image[:20])
  labels = model(raw).argmax(1)
  found = autoattack(
    model, raw / np.float32(255), labels, epsilon=8 / 255, suite=('pgd-2',),
    show=lambda text: None,
  )  # fmt: skip
  assert found.correct['clean'].all()
  assert found.correct['robust'].shape == (20,)
  options = checks.Options(num_images=4, num_steps=2, num_queries=3)
  report = checks.run(
    model, raw, labels, budget=Budget('linf', 0.03, 0.01),
    options=options,
  )  # fmt: skip
  assert next(c for c in report if c.name == 'clean').level == 'green'


@pytest.mark.parametrize(
  'images, words',
  [
    (np.zeros((2, 9, 9, 1), np.uint8), r'give \[8, 8, 1\]'),
    (np.zeros((8, 8), np.uint8), r'shape \(8, 8\)'),
    (np.zeros((2, 8, 8, 1), np.int32), 'int32'),
    (np.full((2, 8, 8, 1), 200.0), r'range over \[200, 200\]'),
    (np.full((8, 8, 1), np.nan), 'range over'),
  ],
)
def test_images_that_are_none(model, images, words):
  with pytest.raises(UserError, match=words):
    model(images)


def test_runs_that_cannot_be_loaded(run, tmp_path):
  with pytest.raises(UserError, match='nowhere'):
    jax_robust_kd.load(tmp_path / 'nowhere')
  with pytest.raises(UserError, match="no 'last' checkpoint"):
    jax_robust_kd.load(run, checkpoint='last')
  with pytest.raises(UserError, match="'newest' is unknown"):
    jax_robust_kd.load(run, checkpoint='newest')


def test_runs_of_the_first_version(named, tmp_path, monkeypatch):
  """Their checkpoints tell the number of classes and the normalization."""
  known = networks.describe_data(named)
  for key in ('class_names', 'image_shape', 'dataset'):
    del known[key]
  monkeypatch.setattr('helpers.saved_runs.describe_data', lambda _: known)
  save_run(tmp_path / 'old', named)
  model = jax_robust_kd.load(str(tmp_path / 'old'))
  assert model.class_names == tuple('0123456789')
  assert model.image_shape == () and model.card == {}
  assert model(np.zeros((8, 8, 1), np.uint8)).shape == (10,)


def save_image(path, pixels):
  image = pytest.importorskip('PIL.Image')
  image.fromarray(pixels).save(path)
  return str(path)


def test_image_files_have_classes(run, model, named, tmp_path, capsys):
  raw = np.asarray(named.test.image[:2])
  small = save_image(tmp_path / 'small.png', raw[0, :, :, 0])
  large = save_image(tmp_path / 'large.png', np.zeros((40, 30), np.uint8))
  argv = ['', 'predict', '--model', str(run), small, large, '--top=2']
  assert main(argv) == 0
  first, second = capsys.readouterr().out.splitlines()
  name, probabilities = model.predict(raw[0])
  best = 100 * probabilities.max()
  assert first.startswith(f'{small}: {name} {best:.1f} %, digit ')
  assert second.startswith(f'{large}: digit ') and second.count('%') == 2


def test_files_that_are_no_images(run, tmp_path, capsys):
  broken = tmp_path / 'broken.png'
  broken.write_bytes(b'no image')
  colour = save_image(tmp_path / 'colour.png', np.zeros((8, 8, 3), np.uint8))
  for path, words in (
    (tmp_path / 'none.png', 'cannot be read'),
    (broken, 'cannot be decoded'),
    (colour, 'grey'),
  ):
    assert main(['', 'predict', '--model', str(run), str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert (
      words in error and path.__fspath__() in error if path != colour else 1
    )
  assert main(['', 'predict', '--model', str(run)]) == 2
  assert 'IMAGE' in capsys.readouterr().err


def test_the_package_is_light():
  code = 'import sys, jax_robust_kd; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)
