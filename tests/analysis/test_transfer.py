"""A linear probe of frozen features: the fit, and the command."""

import json

from helpers.saved_runs import save_run
from helpers.written import random_images, write_tfds
import jax
import numpy as np
import optax
import pytest

from jax_robust_kd import data, job, networks
from jax_robust_kd.__main__ import main
from jax_robust_kd.analysis import features, linear_probe, transfer
from jax_robust_kd.config import load_config
from jax_robust_kd.core import RunError
from jax_robust_kd.evaluation import store
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.training import build
from jax_robust_kd.workdir import claim_workdir

CONFIG = 'configs/transfer.py:digits'


def clusters(seed, count, spread=0.3):
  """Three classes of features, of very different scales; one is dead."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, 3, count).astype(np.int32)
  centers = np.random.default_rng(0).normal(size=(3, 4))
  feature = centers[label] + spread * rng.normal(size=(count, 4))
  feature = np.append(feature * [100, 1, 1, 0.01], np.ones((count, 1)), 1)
  return linear_probe.Labelled(feature.astype(np.float32), label)


def fit(train, val, tx=None, log=lambda line: None, **changes):
  schedule = linear_probe.Schedule(20, 30)._replace(**changes)
  tx = tx or optax.adam(0.05)
  return linear_probe.fit(train, val, 3, tx, schedule, log)


def test_one_step_by_hand():
  """From 0, with softmax 1/3: kernel = rate / N Z^T (Y - 1/3), unstandardized.

  Z are the standardized features; the probe returned takes the raw ones.
  """
  part = clusters(1, 30)
  probe = fit(part, part, optax.sgd(0.1), batch_size=30, epochs=1)
  x, y = part.feature[:, :4].astype(np.float64), np.eye(3)[part.label]
  z = (x - x.mean(0)) / x.std(0)
  kernel = 0.1 / 30 * z.T @ (y - 1 / 3)
  bias = 0.1 * (y - 1 / 3).mean(0)
  expected = z @ kernel + bias
  np.testing.assert_allclose(
    part.feature @ probe.kernel + probe.bias, expected, rtol=2e-4, atol=1e-5
  )
  np.testing.assert_array_equal(probe.kernel[4], 0)  # the dead feature


def test_the_fit_separates_what_is_separable_whatever_its_scale():
  probe = fit(clusters(1, 200), clusters(2, 90))
  test = clusters(3, 200)
  found = np.argmax(test.feature @ probe.kernel + probe.bias, axis=1)
  assert probe.val_clean > 0.95 and np.mean(found == test.label) > 0.95


def test_held_out_images_choose_the_epoch():
  """Of a fit that gets worse on them, the best epoch is returned."""
  lines = []
  val = clusters(2, 60, spread=0.6)
  noisy = clusters(1, 40, spread=2.0)
  probe = fit(noisy, val, optax.adam(0.3), lines.append, epochs=40)
  scores = [line['val_clean'] for line in lines]
  best = int(np.argmax(scores))
  assert best < len(lines) - 1 and scores[-1] < scores[best]
  assert probe.step == lines[best]['step'] == 2 * (best + 1)
  found = np.argmax(val.feature @ probe.kernel + probe.bias, axis=1)
  assert np.mean(found == val.label) == pytest.approx(scores[best])


def test_the_order_hangs_on_the_seed_alone():
  part = clusters(1, 60)
  one, same, other = (fit(part, part, seed=s, epochs=2) for s in (0, 0, 1))
  np.testing.assert_array_equal(one.kernel, same.kernel)
  assert np.abs(one.kernel - other.kernel).max() > 1e-6


def test_a_loss_that_is_not_finite_stops_it():
  part = clusters(1, 60)
  with pytest.raises(RunError, match='optimizer.learning_rate'):
    fit(part, part, optax.sgd(np.inf))


def few_classes(digits):
  """The digits 0, 1 and 2, brighter, as arrays of another data set."""
  arrays = {}
  for name, part in (('train', digits.train), ('test', digits.test)):
    rows = np.flatnonzero(part.label < 3)
    arrays[f'{name}_image'] = np.minimum(part.image[rows], 200) + 55
    arrays[f'{name}_label'] = part.label[rows]
  return arrays


@pytest.fixture(scope='module')
def root(digits, tmp_path_factory):
  """Holds the run 'source', of random weights, and other.npz."""
  folder = tmp_path_factory.mktemp('transfer')
  model = dict(name='small_resnet', depth=8, width=6, mean=(0.2,), std=(0.4,))
  save_run(folder / 'source', digits, 0, student=model)
  np.savez(folder / 'other.npz', **few_classes(digits))
  return folder


def command(root, *flags, workdir='done', run='source'):
  return main(
    [
      'jax-robust-kd',
      'transfer',
      f'--features={root / run}',
      f'--config={CONFIG}',
      f'--workdir={root / workdir}',
      f'--config.data.name={root / "other.npz"}',
      '--config.optimizer.epochs=8',
      '--config.eval.num_examples=70',
      *flags,
    ]
  )


@pytest.fixture(scope='module')
def done(root):
  """The results of features of ten digits on the set of three classes."""
  assert command(root) == 0
  return json.loads((root / 'done' / 'results.json').read_text())


def test_the_card(done, root, digits):
  source = networks.load_network(str(root / 'source'), digits)
  assert done['features']['run'] == str(root / 'source')
  assert done['features']['sha256'] == source.sha256 != done['sha256']
  assert done['features']['dataset'] == 'digits'
  assert done['features']['method'] == 'pgd_at'
  assert done['dataset'].endswith('other.npz')
  assert done['eps'] == '2/16' and done['num_examples'] == 70
  assert list(done['accuracy']) == ['pgd-20'] and 'commit' in done
  assert 'held-out' in done['chosen_by'] and done['seed'] == 0


def test_the_probe_learns_and_the_attack_passes_through_the_network(done):
  assert done['clean_acc'] > 80
  assert done['robust_accuracy'] < done['clean_acc'] - 5


def test_a_checkpoint_is_read_once(root, monkeypatch):
  """Whatever its number of classes is: reading hashes all weights."""
  steps = []
  restore = checkpoint.restore
  monkeypatch.setattr(
    checkpoint, 'restore', lambda *args: steps.append(1) or restore(*args)
  )
  other = data.load(str(root / 'other.npz'))
  network = features.load_any(str(root / 'source'), other, 'best')
  assert (network.num_classes, other.num_classes) == (10, 3)
  assert steps == [1]


def test_only_the_head_is_new(done, root, digits):
  other = data.load(str(root / 'other.npz'))
  before = networks.load_network(str(root / 'source'), digits)
  after = networks.load_network(str(root / 'done'), other)
  assert after.num_classes == 3
  kept = [
    {**n.variables, 'params': {**n.variables['params'], 'head': 0}}
    for n in (before, after)
  ]
  jax.tree.map(np.testing.assert_array_equal, *kept)
  assert after.variables['params']['head']['kernel'].shape == (24, 3)
  # Also what no weight tells: mean and deviation of the images.
  image = other.test.image[:70] / np.float32(255)
  pooled = before.forward(before.variables, image, 'eval').features['pooled']
  head = after.variables['params']['head']
  found = np.argmax(pooled @ head['kernel'] + head['bias'], axis=1)
  accuracy = 100 * np.mean(found == other.test.label[:70])
  assert done['clean_acc'] == pytest.approx(accuracy)


def test_what_is_done_is_not_done_again(done, root, monkeypatch, capsys):
  def never(*args, **kwargs):
    raise AssertionError('done again')

  monkeypatch.setattr(linear_probe, 'fit', never)
  monkeypatch.setattr(store, '_save', never)
  assert command(root) == 0
  assert 'clean' in capsys.readouterr().out
  again = json.loads((root / 'done' / 'results.json').read_text())
  assert again == done


def test_more_attacks_on_what_is_done(done, root):
  flags = ("--config.eval.suite=('fgsm',)", '--mode=eval')
  assert command(root, *flags) == 0
  card = json.loads((root / 'done' / 'results.json').read_text())
  assert list(card['accuracy']) == ['fgsm']
  assert card['sha256'] == done['sha256']


def test_test_images_have_no_part_in_the_choice(root, tmp_path):
  """The probe is the same whatever they are."""
  c = transfer.make_config(
    load_config(CONFIG), str(root / 'source'), tmp_path / 'x'
  )
  c.optimizer.epochs = 2
  dataset = data.load('digits')
  network = networks.load_network(str(root / 'source'), dataset)
  few = data.Split(dataset.train.image[:128], dataset.train.label[:128])
  dataset = dataset._replace(train=few, test=data.Split(None, None))
  probe = transfer.train_probe(c, network, dataset, tmp_path)
  assert probe.val_clean > 0.4  # ten classes, and 0.61 by random features
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['epoch'] for line in lines] == [1, 2]


# flags, words that the sentence must hold
CASES = {
    'no_run': (['--features=nowhere'], ['nowhere', 'config.json']),
    'nothing_given': (['--features'], ['--features RUN']),
    'own_workdir': (['--workdir=ROOT/source'], ['ROOT/source', 'new one']),
    'augmentation': (
        ['--config.data.augment.flip=True'], ['data.augment.flip', 'switch'],
    ),
    'other_size': (
        ['--config.data.name=ROOT/large.npz', '--config.data.val_size=20'],
        ['8 pixels', 'large.npz', '16'],
    ),
    'other_channels': (
        ['--config.data.name=ROOT/colour.npz'], ['1 channel', 'has 3'],
    ),
    'no_last_checkpoint': (['--config.eval.checkpoint=last'], ["no 'last'"]),
    'no_classifier': (
        ['--features=ROOT/alone'], ["classifier='none'", 'checkpoint=last'],
    ),
    'no_classifier_and_last': (
        ['--features=ROOT/alone', '--config.eval.checkpoint=last'],
        ["no 'last'"],
    ),
    'batch_too_large': (['--config.data.batch_size=4000'], ['4000']),
    'unknown_attack': (["--config.eval.suite=('pgdd',)"], ['pgdd']),
    'no_probe_yet': (['--mode=eval'], ['train there first']),
    'unknown_flag': (['--featres=x'], ['featres']),
}  # fmt: skip


@pytest.fixture(scope='module')
def mistakes(root, digits):
  alone = dict(name='gacd', classifier='none')
  save_run(root / 'alone', digits, 0, method=alone)
  label = np.arange(400) % 10
  for name, shape in (('large', (16, 16, 1)), ('colour', (8, 8, 3))):
    image = np.random.default_rng(0).integers(0, 256, (400, *shape), np.uint8)
    np.savez(root / f'{name}.npz', image=image, label=label)
  return root


@pytest.mark.parametrize('case', CASES)
def test_mistake_gets_one_sentence(case, mistakes, capsys, monkeypatch):
  def no_compile(*args, **kwargs):
    raise AssertionError('something was compiled before the refusal')

  monkeypatch.setattr(jax, 'pmap', no_compile)
  monkeypatch.setattr(jax, 'jit', no_compile)
  flags, words = CASES[case]
  flags = [flag.replace('ROOT', str(mistakes)) for flag in flags]
  assert command(mistakes, *flags, workdir='refused') == 2
  error = capsys.readouterr().err.replace(str(mistakes), 'ROOT')
  assert error.startswith('error: ') and error.count('\n') == 1, error
  for word in words:
    assert word in error, error


def test_a_probe_of_other_features_is_refused(done, root, digits, capsys):
  model = dict(name='small_resnet', depth=8, width=6, mean=(0.2,), std=(0.4,))
  save_run(root / 'another', digits, 1, student=model)
  assert command(root, run='another') == 2
  error = capsys.readouterr().err
  assert 'other features' in error and str(root / 'source') in error


def test_sides_of_images(root):
  """The size is the run's; another one is refused."""
  given, source = (job.copy(load_config(CONFIG)) for _ in range(2))
  given.data.name = 'stl10'
  assert transfer._find_side(given, source, 'runs/x') == 8  # of digits
  source.data.image_size = 32
  assert transfer._find_side(given, source, 'runs/x') == 32
  given.data.image_size = 64
  with pytest.raises(transfer.UserError, match='image_size=64.*32 pixels'):
    transfer._find_side(given, source, 'runs/x')
  source.data.image_size = 0
  assert transfer._find_side(given, source, 'runs/x') == 64


def test_stl10_is_brought_to_the_size_of_cifar10(tmp_path):
  """96 pixels to 32, for the features of a run that has read no set yet."""
  ramp = np.arange(96)[None, :, None] + np.zeros((96, 96, 3))
  images = [np.uint8(ramp + 20 * (i % 3)) for i in range(15)]
  parts = {'train': images, 'test': images[:4]}
  write_tfds(tmp_path, 'stl10', '1.0.0', parts, size=96, names=10)
  parts = {part: random_images(4, 32) for part in ('train', 'test')}
  write_tfds(tmp_path, 'cifar10', '3.0.2', parts, size=32, names=10)
  source = job.copy(load_config('configs/pgd_at.py:cifar10'))
  given = job.copy(load_config('configs/transfer.py:stl10'))
  source.data.data_dir = given.data.data_dir = str(tmp_path)
  given.data.val_size = 5
  (tmp_path / 'run').mkdir()
  claim_workdir(tmp_path / 'run', source)
  run = str(tmp_path / 'run')
  c = transfer.make_config(given, run, tmp_path / 'x')
  dataset = build.load_data(c)
  transfer._check_side(c, run, dataset)
  assert c.data.image_size == 32
  assert dataset.train.image.shape == (10, 32, 32, 3)
  # The middle 32 of 37 pixels, which are 96 / 37 of the old ones wide.
  columns = (np.arange(32) + 0.5 + (37 - 32) // 2) * 96 / 37 - 0.5
  for place, image in enumerate(dataset.test.image):
    expected = np.broadcast_to(columns[:, None] + 20 * (place % 3), image.shape)
    np.testing.assert_allclose(image, expected, atol=1)


def test_help(capsys):
  assert main(['jax-robust-kd', 'transfer', '--help']) == 0
  assert '--features RUN' in capsys.readouterr().out
