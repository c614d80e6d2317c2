import importlib.util
import os
import shutil
import subprocess
import sys

from helpers.written import random_images as _image
from helpers.written import save_image as _save
from helpers.written import write_tfds
import numpy as np
from PIL import Image
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import UserError
from jax_robust_kd.data import source
from jax_robust_kd.data import split as split_lib


def _label(n, num_classes=3):
  return np.arange(n) % num_classes


def _arrays(**changes):
  arrays = {
    'train_image': _image(30),
    'train_label': _label(30),
    'test_image': _image(9, seed=1),
    'test_label': _label(9),
  }
  return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


def _npz(tmp_path, arrays):
  path = tmp_path / 'set.npz'
  np.savez(path, **arrays)
  return str(path)


@pytest.fixture
def folder(tmp_path):
  """Two classes; each image is of one colour, 10 * place + 100 * class.

  In the test part it is 5 more.
  """
  for part, count in (('train', 6), ('test', 2)):
    for label, name in enumerate(('ant', 'bee')):
      for place in range(count):
        colour = 10 * place + 100 * label + 5 * (part == 'test')
        colour = np.full((4, 5, 3), colour, np.uint8)
        _save(tmp_path / part / name / f'{place}.png', colour)
  return tmp_path


# Digits.


def test_digits_sizes_and_balance():
  d = data.load('digits')
  sizes = [len(part.label) for part in (d.train, d.val, d.test)]
  assert sizes == [1100, 197, 500]
  for part in (d.train, d.val, d.test):
    assert part.image.shape[1:] == (8, 8, 1)
    assert part.image.dtype == np.uint8 and part.label.dtype == np.int32
    assert np.bincount(part.label).min() > 0.06 * len(part.label)
  assert d.train.image.max() == 255
  assert d.num_classes == 10 and d.class_names[7] == '7'


def test_digits_values_are_sixteenths():
  values = np.unique(data.load('digits').train.image)
  np.testing.assert_array_equal(values, np.round(np.arange(17) * 255 / 16))


def test_digits_statistics_are_those_of_the_training_images():
  d = data.load('digits')
  both = np.concatenate([d.train.image, d.val.image]) / 255
  np.testing.assert_allclose(d.mean, both.mean(), atol=1e-4)
  np.testing.assert_allclose(d.std, both.std(), atol=1e-4)


def test_every_known_set_has_statistics():
  for name, info in data.DATASETS.items():
    assert len(info.mean) == len(info.std) in (1, 3), name
    assert info.val_size > 0, name


# Validation and subsets.


def test_the_last_training_images_are_held_out(tmp_path):
  arrays = _arrays()
  d = data.load(_npz(tmp_path, arrays), val_size=8, val='last')
  np.testing.assert_array_equal(d.train.image, arrays['train_image'][:22])
  np.testing.assert_array_equal(d.val.image, arrays['train_image'][22:])
  np.testing.assert_array_equal(d.val.label, arrays['train_label'][22:])


def test_num_train_cuts_after_the_validation_images(tmp_path):
  path = _npz(tmp_path, _arrays())
  whole, few = (data.load(path, val_size=8, num_train=n) for n in (0, 5))
  np.testing.assert_array_equal(few.train.image, whole.train.image[:5])
  np.testing.assert_array_equal(few.val.image, whole.val.image)
  assert few.mean == whole.mean


def test_default_validation_of_an_unknown_set(tmp_path):
  assert len(data.load(_npz(tmp_path, _arrays())).val.label) == 3


@pytest.mark.parametrize('size', [30, 31])
def test_validation_as_large_as_train(tmp_path, size):
  with pytest.raises(UserError, match=f'val_size={size} leaves nothing of 30'):
    data.load(_npz(tmp_path, _arrays()), val_size=size)


def test_negative_validation_and_too_many_training_images(tmp_path):
  path = _npz(tmp_path, _arrays())
  with pytest.raises(UserError, match='val_size=-1 is negative'):
    data.load(path, val_size=-1)
  with pytest.raises(UserError, match='num_train=28, but there are 27'):
    data.load(path, num_train=28)


def test_training_images_sorted_by_class(tmp_path):
  arrays = _arrays(train_label=np.sort(_label(30)))
  with pytest.raises(UserError, match="sorted by class.*val='stratified'"):
    data.load(_npz(tmp_path, arrays), val='last')


# .npz files.


def test_npz_statistics_by_hand(tmp_path):
  arrays = _arrays()
  d = data.load(_npz(tmp_path, arrays), val_size=8, val='last')
  used = arrays['train_image'][:22] / 255
  np.testing.assert_allclose(d.mean, used.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(d.std, used.std((0, 1, 2)), rtol=1e-6)


def test_statistics_of_a_constant_channel_can_be_divided_by():
  mean, std = split_lib.statistics(np.full((2, 3, 3, 1), 51, np.uint8))
  assert mean == (0.2,) and std == (1 / 255,)


def test_npz_with_one_part_is_cut_at_random_but_fixed(tmp_path):
  image = _image(40)
  path = _npz(tmp_path, {'image': image, 'label': _label(40)})
  one, two = (data.load(p, val='last') for p in (f'npz:{path}', path))
  assert [len(p.label) for p in one[:3]] == [29, 3, 8]
  np.testing.assert_array_equal(one.test.image, two.test.image)
  parts = np.concatenate([p.image for p in one[:3]])
  order = np.random.default_rng(0).permutation(40)
  np.testing.assert_array_equal(parts, image[order])


def test_npz_class_names(tmp_path):
  names = np.array(['cat', 'dog', 'eel'])
  d = data.load(_npz(tmp_path, _arrays(class_names=names)))
  assert d.class_names == ('cat', 'dog', 'eel')


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16])
def test_float_images_become_the_uint8_they_came_from(tmp_path, dtype):
  arrays = _arrays()
  scaled = (arrays['train_image'] / 255).astype(dtype)
  d = data.load(_npz(tmp_path, {**arrays, 'train_image': scaled}), val='last')
  assert d.train.image.dtype == np.uint8
  np.testing.assert_array_equal(d.train.image, arrays['train_image'][:27])


BAD_ARRAYS = {
  'a missing key': ({'test_label': None}, 'it has the keys'),
  'fewer labels': (
    {'train_label': _label(29)},
    '30 images but 29 labels',
  ),
  'float above 1': (
    {'train_image': _image(30) * 1.0},
    r'scale them to \[0, 1',
  ),
  'float below 0': (
    {'train_image': _image(30) / 255 - 0.5},
    r'scale them to \[0, 1',
  ),
  'not a number': (
    {'train_image': np.full((30, 4, 4, 3), np.nan)},
    r'scale them to \[0, 1',
  ),
  'wide integers': (
    {'train_image': _image(30).astype(int)},
    'use uint8',
  ),
  'no channels': (
    {'train_image': _image(30)[..., 0]},
    r'use \[images, height, width, channels\]',
  ),
  'no images': (
    {'train_image': _image(0), 'train_label': _label(0)},
    'no images',
  ),
  'no test images': (
    {'test_image': _image(0), 'test_label': _label(0)},
    r'\(test\): there are no images',
  ),
  'one-hot labels': (
    {'train_label': np.eye(3)[_label(30)]},
    'use one integer per image',
  ),
  'float labels': ({'train_label': _label(30) * 1.0}, 'use integers from 0'),
  'negative label': ({'train_label': _label(30) - 1}, 'a label -1'),
  'huge label': (
    {'train_label': _label(30) + 2**40},
    'too large',
  ),
  'label of no class': (
    {'class_names': np.array(['a', 'b'])},
    'a label 2, but only 2 classes',
  ),
  'test label of no class': (
    {'test_label': _label(9, 5)},
    r'\(test\): there is a label 4, but only 3 classes',
  ),
  'class without images': (
    {'train_label': _label(30) * 2},
    "class '1' has no images",
  ),
  'named class without images': (
    {'class_names': np.array(['a', 'b', 'c', 'd'])},
    "class 'd' has no images",
  ),
  'one class': (
    {'train_label': _label(30, 1), 'test_label': _label(9, 1)},
    'only one class',
  ),
  'sizes differ': (
    {'test_image': _image(9, size=5)},
    'bring all to one size',
  ),
  'objects': (
    {'train_label': np.array([None] * 30)},
    'not a readable .npz file of plain arrays',
  ),
}


@pytest.mark.parametrize('case', BAD_ARRAYS)
def test_bad_arrays(tmp_path, case):
  changes, message = BAD_ARRAYS[case]
  with pytest.raises(UserError, match=message) as error:
    data.load(_npz(tmp_path, _arrays(**changes)))
  assert '\n' not in str(error.value)


def _truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_bytes(path):
  content = bytearray(path.read_bytes())
  content[400:500] = bytes(100)
  path.write_bytes(content)


def _write_npy(path):
  with path.open('wb') as file:
    np.save(file, np.zeros(3))


@pytest.mark.parametrize(
  'damage',
  [
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(b'not a zip file'),
    _truncate,
    _flip_bytes,
    _write_npy,
  ],
)
def test_damaged_npz(tmp_path, damage):
  path = _npz(tmp_path, _arrays())
  damage(tmp_path / 'set.npz')
  with pytest.raises(UserError, match='not a readable .npz file'):
    data.load(path)


@pytest.mark.parametrize('name', ['npz:nowhere/set.npz', 'nowhere/set.npz'])
def test_missing_npz(name):
  with pytest.raises(UserError, match='there is no file nowhere/set.npz'):
    data.load(name)


def test_tfds_splits_of_something_else(tmp_path):
  with pytest.raises(UserError, match='train_split=.* is for TFDS sets only'):
    data.load('digits', train_split='train[:10]')
  with pytest.raises(UserError, match='test_split=.* is for TFDS sets only'):
    data.load(_npz(tmp_path, _arrays()), test_split='test')


# Image folders.


def test_folder(folder):
  d = data.load(str(folder), val_size=3)
  assert d.class_names == ('ant', 'bee')
  assert d.train.image.shape == (9, 4, 5, 3) and len(d.test.label) == 4
  colours = np.concatenate([d.train.image, d.val.image])[:, 0, 0, 0]
  labels = np.concatenate([d.train.label, d.val.label])
  np.testing.assert_array_equal(labels, colours >= 100)
  expected = [10 * place + 100 * k for k in (0, 1) for place in range(6)]
  assert sorted(colours) == expected
  again = data.load(str(folder), val_size=3)
  np.testing.assert_array_equal(d.train.image, again.train.image)


def test_folder_of_jpeg_and_of_grey_images(folder, tmp_path):
  for file in folder.glob('*/*/*.png'):
    grey = Image.open(file).convert('L')
    grey.save(file.with_suffix('.JPG'), quality=95)
    file.unlink()
  d = data.load(str(folder))
  assert d.train.image.shape[1:] == (4, 5, 1)
  _save(tmp_path / 'train' / 'ant' / 'colour.png', _image(1, 4)[0])
  with pytest.raises(UserError, match='images of different sizes'):
    data.load(str(folder))
  _save(tmp_path / 'train' / 'ant' / 'colour.png', _image(1, 5)[0, :4])
  assert data.load(str(folder)).train.image.shape[1:] == (4, 5, 3)


def _damage(folder):
  (folder / 'train' / 'bee' / '3.png').write_bytes(b'no image')


def _truncate_image(folder):
  _save(folder / 'train' / 'bee' / '3.png', _image(1, 64)[0])
  _truncate(folder / 'train' / 'bee' / '3.png')


def _sixteen_bits(folder):
  _save(folder / 'train' / 'bee' / '3.png', np.zeros((4, 5), np.uint16))


def _resize(folder):
  _save(folder / 'test' / 'ant' / '1.png', _image(1, 6)[0])


def _empty_class(folder):
  for file in (folder / 'train' / 'ant').iterdir():
    file.rename(file.with_suffix('.txt'))


def _new_class(folder):
  _save(folder / 'test' / 'cow' / '1.png', _image(1)[0])


@pytest.mark.parametrize(
  'damage, message',
  [
    (_damage, '3.png: the image is damaged'),
    (_truncate_image, '3.png: the image is damaged'),
    (_sixteen_bits, '3.png: .*an image of mode I;16'),
    (_resize, r'different sizes, among them \(4, 5\) and \(6, 6\)'),
    (_empty_class, "class 'ant' has no images"),
    (_new_class, "different classes, among them 'cow'"),
    (
      lambda folder: shutil.rmtree(folder / 'test'),
      'there is no folder .*test',
    ),
    (
      lambda folder: shutil.rmtree(folder / 'train' / 'ant'),
      'it holds 1 folders',
    ),
  ],
)
def test_bad_folder(folder, damage, message):
  damage(folder)
  with pytest.raises(UserError, match=message) as error:
    data.load(str(folder))
  assert '\n' not in str(error.value)


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match='there is no folder .*nowhere/train'):
    data.load(str(tmp_path / 'nowhere'))


def test_empty_name():
  with pytest.raises(UserError, match='data.name is empty'):
    data.load('')


# TFDS. The first tests need no TFDS at all.


@pytest.mark.parametrize('package', ['tensorflow_datasets', 'array_record'])
def test_missing_package(monkeypatch, package):
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda p: None if p == package else True
  )
  message = f'needs {package}; run: pip install tensorflow-datasets'
  with pytest.raises(UserError, match=message):
    data.load('cifar10')


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  """A small set that TFDS has no code for: found by its files alone."""
  root = tmp_path_factory.mktemp('tfds')
  parts = {'train': _image(30), 'test': _image(9, seed=1)}
  write_tfds(root, 'smallset', '1.0.0', parts)
  return root


def test_any_prepared_tfds_set(tfds_dir, monkeypatch):
  d = data.load('smallset', data_dir=str(tfds_dir), val_size=6)
  assert d.class_names == ('0', '1', '2')
  np.testing.assert_array_equal(d.train.image, _image(30)[:24])
  np.testing.assert_array_equal(d.val.label, _label(30)[24:])
  np.testing.assert_array_equal(d.test.image, _image(9, seed=1))
  assert d.mean == split_lib.statistics(d.train.image)[0]
  monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_dir))
  by_variable = data.load('smallset', val_size=6)
  np.testing.assert_array_equal(by_variable.train.image, d.train.image)


def test_tfds_splits(tfds_dir):
  d = data.load(
    'smallset',
    data_dir=str(tfds_dir),
    val_size=2,
    train_split='train[:20]',
    test_split='train[20:]',
  )
  assert [len(part.label) for part in d[:3]] == [18, 2, 10]
  np.testing.assert_array_equal(d.test.image, _image(30)[20:])


@pytest.mark.parametrize(
  'splits, message',
  [
    ({'train_split': 'extra'}, "no split 'extra'.*it has train, test"),
    ({'test_split': 'test[:'}, 'Error parsing split'),
    ({'test_split': 'test[:50]'}, 'incompatible with 9 examples'),
    ({'test_split': 'train[:3]'}, 'share 3 images'),
  ],
)
def test_bad_tfds_splits(tfds_dir, splits, message):
  with pytest.raises(UserError, match=message) as error:
    data.load('smallset', data_dir=str(tfds_dir), **splits)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('cut', ['smallset-test', 'dataset_info', 'features'])
def test_damaged_tfds_set(tfds_dir, tmp_path, cut):
  for file in tfds_dir.rglob('*.*'):
    copy = tmp_path / file.relative_to(tfds_dir)
    if file.is_file():
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())
  (damaged,) = tmp_path.rglob(f'{cut}*')
  _truncate(damaged)
  with pytest.raises(UserError, match='damaged|could not be opened') as error:
    data.load('smallset', data_dir=str(tmp_path))
  assert '\n' not in str(error.value)


def test_unknown_name(tfds_dir):
  with pytest.raises(UserError, match='neither a known set, a .npz') as error:
    data.load('no_such_set', data_dir=str(tfds_dir))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['bad name!', 'cifar10/no_such_config'])
def test_bad_tfds_name(tfds_dir, name):
  with pytest.raises(UserError, match='could not be opened') as error:
    data.load(name, data_dir=str(tfds_dir))
  assert '\n' not in str(error.value)


def test_stock_set_of_images_of_many_sizes(tfds_dir):
  with pytest.raises(UserError, match='of many sizes; set data.image_size'):
    data.load('caltech101', data_dir=str(tfds_dir))


def test_reading_does_not_import_tensorflow(tfds_dir):
  code = (
    'import sys; from jax_robust_kd import data\n'
    'assert "tensorflow_datasets" not in sys.modules\n'
    'data.load("smallset", data_dir=sys.argv[1])\n'
    'assert "tensorflow_datasets" in sys.modules\n'
    'assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code, str(tfds_dir)], check=True)


@pytest.mark.parametrize('lazy', [True, False])
def test_a_damaged_record_is_named(tfds_dir, tmp_path, lazy):
  shutil.copytree(tfds_dir, tmp_path, dirs_exist_ok=True)
  (file,) = tmp_path.rglob('smallset-train*')
  content = bytearray(file.read_bytes())
  content[2000:2010] = bytes(10)  # the file's end holds its index
  file.write_bytes(content)
  reading = data.Reading(memory_gb=0.0, workers=0) if lazy else data.Reading()
  with pytest.raises(UserError, match='smallset train, record .*damaged') as e:
    d = data.load('smallset', str(tmp_path), val_size=2, reading=reading)
    for _ in range(2):
      d.train.image[np.arange(28)]
  assert '\n' not in str(e.value)
  skipped = data.load(
    'smallset', str(tmp_path), 2, reading=data.Reading(damaged='skip')
  )
  assert 20 < len(skipped.train.label) < 28


@pytest.mark.tfds
def test_cifar10():
  root = os.environ.get('TFDS_DATA_DIR', '')
  if not os.path.isdir(os.path.join(root, 'cifar10')):
    pytest.skip('there is no cifar10 in TFDS_DATA_DIR')
  d = data.load('cifar10')
  assert len(d.train.label) == 48_976 and len(d.val.label) == 1024
  assert d.train.image.shape[1:] == (32, 32, 3)
  assert d.class_names[3] == 'cat'
  both = np.concatenate([d.train.image, d.val.image])
  mean, std = split_lib.statistics(both)
  np.testing.assert_allclose(d.mean, mean, atol=1e-4)
  np.testing.assert_allclose(d.std, std, atol=1e-4)
  counts = np.bincount(np.concatenate([d.train.label, d.val.label]))
  np.testing.assert_array_equal(counts, 5000)
  assert source.DATASETS['cifar10'].mean == d.mean
