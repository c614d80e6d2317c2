"""Generated images mixed into every batch, with labels or the teacher's."""

from functools import partial
import itertools

from helpers.steps import small_step
import jax
import numpy as np
import pytest

from jax_robust_kd import data, methods
from jax_robust_kd.config import base_config
from jax_robust_kd.core import AXIS, UserError
from jax_robust_kd.data.extra import extra_places
from jax_robust_kd.training import build

N, EXTRA, BATCH, SHARE = 40, 60, 20, 0.7


@pytest.fixture(scope='module')
def split():
  """Images that hold their own place: 0 to 39; the extra ones from 100."""
  image = np.arange(N, dtype=np.uint8)[:, None, None, None]
  return data.Split(np.broadcast_to(image, (N, 2, 2, 3)).copy(), _label(N))


def _label(n):
  return np.arange(n, dtype=np.int32) % 5


def _write(path, save=np.savez, n=EXTRA, **changes):
  image = np.arange(100, 100 + n, dtype=np.uint8)[:, None, None, None]
  arrays = {'image': np.broadcast_to(image, (n, 2, 2, 3)), 'label': _label(n)}
  arrays = {k: v for k, v in {**arrays, **changes}.items() if v is not None}
  save(path, **arrays)
  return str(path)


def _open(path, **changes):
  options = {'share': SHARE, 'labels': 'file', 'shape': (2, 2, 3)}
  return data.load_extra(path, **{**options, 'num_classes': 5, **changes})


@pytest.fixture(scope='module')
def extra(tmp_path_factory):
  return _open(_write(tmp_path_factory.mktemp('extra') / 'x.npz'))


def _take(split, steps, start=0, **kwargs):
  kwargs = {'batch_size': BATCH, 'seed': 3, 'start_step': start, **kwargs}
  return list(itertools.islice(data.train_batches(split, **kwargs), steps))


def _names(batches):
  return np.concatenate([b['image'][..., 0, 0, 0].ravel() for b in batches])


# Which images.


@pytest.mark.parametrize('share, count', [(0.7, 14), (0.5, 10), (0.33, 6)])
def test_the_share_is_exact_and_spread_evenly(share, count):
  chosen = extra_places(20, share)
  assert chosen.sum() == count
  for parts in (2, 4, 5):
    counts = chosen.reshape(parts, -1).sum(1)
    assert np.ptp(counts) <= 1


def test_every_batch_holds_its_share(split, extra):
  for batch in _take(split, 8, extra=extra):
    generated = batch['image'][0, :, 0, 0, 0] >= 100
    np.testing.assert_array_equal(generated, extra_places(BATCH, SHARE))
    names = batch['image'][0, :, 0, 0, 0].astype(int)
    labels = np.where(generated, names - 100, names) % 5
    np.testing.assert_array_equal(batch['label'][0], labels)
    np.testing.assert_array_equal(batch['index'][0], np.arange(BATCH))
    rows = np.where(generated, N, names)
    np.testing.assert_array_equal(batch['row'][0], rows)


def test_each_part_is_passed_over_without_repeats(split, extra):
  names = _names(_take(split, 4, extra=extra))  # 4 x 14 of 60 extra images
  generated = names[names >= 100]
  assert len(set(generated)) == len(generated) == 56
  names = _names(_take(split, 6, extra=extra))  # 6 x 6 of 40 images
  own = names[names < 100]
  assert len(set(own)) == len(own) == 36
  np.testing.assert_array_equal(own, _names(_take(split, 6, batch_size=6)))


def test_the_extra_images_have_an_order_of_their_own(split):
  """With the same order, the same pairs would meet in every epoch."""
  twin = data.Extra(data.Split(split.image + 100, split.label), 0.5)
  names = _names(_take(split, 4, extra=twin)).astype(int)
  assert np.mean(names[names >= 100] - 100 == names[names < 100]) < 0.2


@pytest.mark.parametrize('processes, devices', [(2, 1), (4, 5), (1, 2)])
def test_shards_and_resume(split, extra, processes, devices):
  whole = _take(split, 9, extra=extra)
  shards = [
    _take(
      split, 4, 5, extra=extra, process_index=p, process_count=processes,
      num_local_devices=devices,
    )
    for p in range(processes)
  ]  # fmt: skip
  for step in range(4):
    for key, value in whole[5 + step].items():
      parts = [shard[step][key] for shard in shards]
      flat = np.concatenate([p.reshape(-1, *value.shape[2:]) for p in parts])
      np.testing.assert_array_equal(flat, value[0])


# The file.


def test_pixels_stay_on_disk(tmp_path):
  found = _open('npz:' + _write(tmp_path / 'x.npz'))
  assert isinstance(found.split.image, np.memmap)
  assert not found.split.image.flags.writeable
  np.testing.assert_array_equal(found.split.label, _label(EXTRA))


def test_labels_of_the_teacher_need_none_in_the_file(tmp_path):
  path = _write(tmp_path / 'x.npz', label=None)
  assert np.all(_open(path, labels='teacher').split.label == -1)
  with pytest.raises(UserError, match="no array 'label', so set.*teacher"):
    _open(path)


def _cut(path):
  with open(path, 'r+b') as file:
    file.truncate(300)


BAD_FILES = {
  'compressed': (
    lambda p: _write(p, np.savez_compressed),
    'jax-robust-kd prepare --name .*x.npz',
  ),
  'missing': (lambda p: None, 'there is no file'),
  'other size': (
    lambda p: _write(p, image=np.zeros((60, 4, 4, 3), np.uint8)),
    r'uint8 of \(2, 2, 3\)',
  ),
  'floats': (lambda p: _write(p, image=np.zeros((60, 2, 2, 3))), 'float64'),
  'large label': (lambda p: _write(p, label=_label(60) + 1), 'a label 5'),
  'few labels': (lambda p: _write(p, label=_label(9)), '60 images but 9'),
  'no images': (lambda p: _write(p, image=None), "no array 'image'"),
  'cut short': (lambda p: _cut(_write(p)), 'not a readable .npz'),
  'no zip': (lambda p: p.write_bytes(b'x'), 'not a readable .npz'),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_bad_files(tmp_path, case):
  make, message = BAD_FILES[case]
  make(tmp_path / 'x.npz')
  with pytest.raises(UserError, match=message) as error:
    _open(str(tmp_path / 'x.npz'))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('share', [0.0, 1.0, -1.0, float('nan')])
def test_bad_share(tmp_path, share):
  with pytest.raises(UserError, match='must be between 0 and 1'):
    _open(_write(tmp_path / 'x.npz'), share=share)


def test_too_few_extra_images(split, tmp_path):
  few = _open(_write(tmp_path / 'x.npz', n=10))
  with pytest.raises(UserError, match='does not fit 10 training images'):
    _take(split, 1, extra=few)


# The teacher's labels.


def test_the_teacher_labels_what_has_no_label(digits):
  setup = small_step(methods.METHODS['kd'](alpha=0.5, temperature=1.0), digits)
  image = setup.batch['image'][0]
  logits = setup.recipe.teachers['robust'](
    setup.teacher_variables['robust'], image / np.float32(255), 'eval'
  ).logits
  own, seen = setup.batch['label'][0], np.asarray(logits.argmax(-1))
  unlabelled = np.arange(len(own)) % 2 == 0
  assert np.any(seen[unlabelled] != own[unlabelled])

  def loss(label, teacher_labels):
    recipe = setup.recipe._replace(teacher_labels=teacher_labels)
    step = setup.step.func  # train_step
    batch = {**setup.batch, 'label': label[None]}
    mapped = jax.vmap(
      partial(step, recipe), (None, None, 0), None, axis_name=AXIS
    )
    _, metrics = jax.jit(mapped)(setup.state, setup.teacher_variables, batch)
    return float(metrics['loss'])

  given = loss(np.where(unlabelled, seen, own).astype(np.int32), False)
  asked = loss(np.where(unlabelled, -1, own).astype(np.int32), True)
  assert asked == given != loss(own, False)


def test_a_method_without_a_teacher_cannot_ask_it(digits, tmp_path):
  c = base_config('digits')
  c.method = {'name': 'pgd_at'}
  c.data.extra.update(file='x.npz', labels='teacher')
  with pytest.raises(UserError, match="method 'pgd_at' has no teacher"):
    build.check(c, digits)


def test_a_config_mixes_them_in(tmp_path):
  c = base_config('digits')
  image = np.zeros((200, 8, 8, 1), np.uint8)
  path = _write(tmp_path / 'x.npz', image=image, label=_label(200))
  c.data.extra.update(file=path, share=0.25)
  dataset = build.load_data(c)
  assert dataset.extra.share == 0.25 and len(dataset.extra.split.label) == 200
