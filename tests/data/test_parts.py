"""Validation drawn from any order, and parts that cannot be meant."""

from helpers.written import random_images
import numpy as np
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import UserError
from jax_robust_kd.data.parts import stratified_order


def own(tmp_path, **changes):
  """Loads an .npz of 60 training and 20 test images of three classes."""
  load = {
    key: changes.pop(key) for key in ('val', 'val_size') if key in changes
  }
  arrays = dict(
    train_image=random_images(60, 8),
    train_label=np.arange(60) % 3,
    test_image=random_images(20, 8, seed=1),
    test_label=np.arange(20) % 3,
  )
  path = tmp_path / 'set.npz'
  np.savez(path, **{**arrays, **changes})
  return data.load(str(path), **load)


RNG = np.random.default_rng(3)
ORDERS = {
  'ascending': np.repeat([0, 1, 2], 20),
  'descending': np.repeat([2, 1, 0], 20),
  'blocks': np.repeat([1, 2, 0], 20),
  'two blocks each': np.tile(np.repeat([2, 0, 1], 10), 2),
  'one class last': np.r_[np.arange(40) % 2, [2] * 20],
  'shuffled': RNG.permutation(np.repeat([0, 1, 2], 20)),
}


@pytest.mark.parametrize('order', ORDERS)
def test_validation_has_each_class_whatever_the_order(order, tmp_path):
  label = ORDERS[order]
  d = own(tmp_path, train_label=label, val_size=12)
  np.testing.assert_array_equal(np.bincount(d.val.label), [4, 4, 4])
  np.testing.assert_array_equal(np.bincount(d.train.label), [16, 16, 16])
  # Every image is in one of both, with its own label.
  of = {
    x.tobytes(): k for x, k in zip(random_images(60, 8), label, strict=True)
  }
  found = {
    x.tobytes(): k
    for part in d[:2]
    for x, k in zip(part.image, part.label, strict=True)
  }
  assert found == of
  again = own(tmp_path, train_label=label, val_size=12)
  np.testing.assert_array_equal(d.val.image, again.val.image)
  few = data.load(str(tmp_path / 'set.npz'), val_size=12, num_train=9)
  np.testing.assert_array_equal(np.bincount(few.train.label), [3, 3, 3])
  np.testing.assert_array_equal(few.val.image, d.val.image)


@pytest.mark.parametrize('order', ['ascending', 'descending', 'blocks'])
def test_the_last_of_sorted_images_are_refused(order, tmp_path):
  with pytest.raises(UserError, match='sorted by class'):
    own(tmp_path, train_label=ORDERS[order], val='last')


def test_each_class_keeps_a_training_image(tmp_path):
  label = np.r_[np.zeros(57, int), 1, 2, 2]
  d = own(tmp_path, train_label=label, val_size=57)
  np.testing.assert_array_equal(np.bincount(d.train.label), [1, 1, 1])
  with pytest.raises(UserError, match='val_size=58 leaves some class without'):
    own(tmp_path, train_label=label, val_size=58)


def test_an_unknown_draw(tmp_path):
  with pytest.raises(UserError, match="val='first' is unknown"):
    own(tmp_path, val='first')


def test_digits_hold_out_the_last_images():
  """Recipes of known sets mean the last images, whose numbers are published."""
  default, last = data.load('digits'), data.load('digits', val='last')
  np.testing.assert_array_equal(default.val.image, last.val.image)
  drawn = data.load('digits', val='stratified')
  assert len(drawn.val.label) == len(last.val.label)
  assert not np.array_equal(drawn.val.image, last.val.image)


def test_order_of_uneven_classes():
  label = np.r_[np.zeros(90, int), np.ones(10, int)]
  first = label[stratified_order(label)[:50]]
  np.testing.assert_array_equal(np.bincount(first), [45, 5])


# Refusals.


@pytest.mark.parametrize(
  'shape', [(60, 3, 32, 32), (60, 1, 8, 8), (60, 13, 16, 16)]
)
def test_channels_first(shape, tmp_path):
  image = RNG.integers(0, 256, shape, np.uint8)
  with pytest.raises(UserError, match=r'transpose\(0, 2, 3, 1\)'):
    own(tmp_path, train_image=image)


def test_images_last(tmp_path):
  image = np.moveaxis(random_images(60, 8), 0, -1)
  with pytest.raises(UserError, match=r'transpose\(3, 0, 1, 2\)'):
    own(tmp_path, train_image=image)


@pytest.mark.parametrize('channels', [1, 3, 4, 13])
def test_channels_last_are_read(channels, tmp_path):
  parts = {
    f'{part}_image': random_images(count, 16, channels, seed)
    if channels < 13
    else RNG.integers(0, 256, (count, 16, 16, channels), np.uint8)
    for seed, (part, count) in enumerate((('train', 60), ('test', 20)))
  }
  assert own(tmp_path, **parts).train.image.shape[1:] == (16, 16, channels)


GREY = random_images(60, 8), random_images(20, 8, seed=1)


@pytest.mark.parametrize(
  'changes',
  [
    dict(train_image=(GREY[0] / 255).astype(np.uint8)),
    dict(train_image=GREY[0] / 255 / 255),
    dict(train_image=GREY[0] // 16, test_image=GREY[1] // 16),
    dict(test_image=(GREY[1] / 255).astype(np.uint8)),
    dict(test_image=GREY[1] / 255 / 255),
    dict(test_image=np.zeros_like(GREY[1])),
  ],
)
def test_dark_images(changes, tmp_path):
  with pytest.raises(UserError, match='the brightest (train|test) pixel is'):
    own(tmp_path, **changes)


def test_parts_of_two_ranges(tmp_path):
  with pytest.raises(UserError, match='test pixels go up to 51 and train'):
    own(tmp_path, test_image=GREY[1] // 5)
  with pytest.raises(UserError, match='train pixels go up to 51 and test'):
    own(tmp_path, train_image=GREY[0] // 5)
  own(tmp_path, test_image=GREY[1] // 3)


def test_test_images_that_are_trained_on(tmp_path, capsys):
  with pytest.raises(UserError, match='20 of 20 test images are training'):
    own(tmp_path, test_image=GREY[0][:20])
  mixed = np.concatenate([GREY[0][:2], GREY[1][2:]])
  with pytest.raises(UserError, match='2 of 20 test images are training'):
    own(tmp_path, test_image=mixed)
  mixed = np.concatenate([GREY[0][:1], GREY[1][1:]])
  own(tmp_path, test_image=mixed)
  assert '1 of 20 test images are training images' in capsys.readouterr().err
  own(tmp_path)
  assert not capsys.readouterr().err


@pytest.mark.parametrize('part, count', [('train', 60), ('test', 20)])
def test_a_part_of_one_class(part, count, tmp_path):
  with pytest.raises(UserError, match='class|all .* have label 0'):
    own(tmp_path, **{f'{part}_label': np.zeros(count, int)})


def test_test_labels_of_one_class(tmp_path):
  with pytest.raises(UserError, match='all 20 test images have label 2'):
    own(tmp_path, test_label=np.full(20, 2))
