"""Sets known by name: shapes, classes and splits come from the set."""

from pathlib import Path

from helpers.written import random_images, save_image, write_tfds
import numpy as np
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import UserError


def _lazy(**reading):
  return data.Reading(**{'memory_gb': 0.0, 'workers': 0, **reading})


def test_imagenet2012_is_streamed_at_224_pixels(tmp_path):
  rng = np.random.default_rng(0)
  sizes = [(240, 300), (224, 224), (500, 375), (30, 40)] * 4
  images = [rng.integers(0, 256, (*s, 3), np.uint8) for s in sizes]
  parts = {'train': images, 'validation': images[:3]}
  write_tfds(tmp_path, 'imagenet2012', '5.1.0', parts, size=None, names=1000)
  d = data.load('imagenet2012', str(tmp_path), val_size=2, reading=_lazy())
  assert d.num_classes == 1000 and d.class_names[0] == 'n01440764'
  assert d.train.image.shape == (14, 224, 224, 3)
  assert d.test.image.shape == (3, 224, 224, 3)
  assert d.mean == (0.485, 0.456, 0.406)
  np.testing.assert_array_equal(d.train.image[np.array([1])][0], images[1])
  np.testing.assert_array_equal(d.test.label[np.arange(3)], [0, 1, 2])
  small = data.load(
    'imagenet2012',
    str(tmp_path),
    val_size=2,
    reading=data.Reading(image_size=16),
  )
  assert isinstance(small.train.image, np.ndarray)
  assert small.train.image.shape == (14, 16, 16, 3)


def test_cifar10_corrupted_trains_on_cifar10(tmp_path):
  parts = {'train': random_images(30, 32), 'test': random_images(6, 32, seed=1)}
  write_tfds(tmp_path, 'cifar10', '3.0.2', parts, size=32, names=10)
  name, config = 'cifar10_corrupted', 'fog_3'
  parts = {'test': random_images(6, 32, seed=2)}
  write_tfds(tmp_path, name, '1.0.0', parts, config, size=32, names=10)
  d = data.load(f'{name}/{config}', str(tmp_path), val_size=6)
  np.testing.assert_array_equal(d.train.image, random_images(30, 32)[:24])
  np.testing.assert_array_equal(d.test.image, random_images(6, 32, seed=2))
  assert d.mean == data.DATASETS['cifar10'].mean


def test_imagenet_resized_is_known_before_its_slash(tmp_path):
  parts = {
    'train': random_images(30, 8),
    'validation': random_images(6, 8, seed=1),
  }
  write_tfds(
    tmp_path, 'imagenet_resized', '0.1.0', parts, '8x8', size=8, names=1000
  )
  d = data.load('imagenet_resized/8x8', str(tmp_path), val_size=6)
  assert len(d.test.label) == 6 and d.num_classes == 1000


def _tiny_imagenet(root):
  wnids = ('n01443537', 'n01629819')
  for label, wnid in enumerate(wnids):
    for place in range(12):
      colour = np.full((64, 64, 3), 20 * place + label, np.uint8)
      save_image(root / f'train/{wnid}/images/{wnid}_{place}.JPEG', colour)
  for place in range(4):
    save_image(
      root / f'val/images/val_{place}.JPEG',
      np.full((64, 64, 3), place, np.uint8),
    )
  rows = [f'val_{i}.JPEG\t{wnids[i % 2]}\t0\t0\t9\t9' for i in (3, 1, 0, 2)]
  (root / 'val/val_annotations.txt').write_text('\n'.join(rows) + '\n')
  (root / 'words.txt').write_text('n01443537\tgoldfish, Carassius auratus\n')


@pytest.mark.parametrize('inside', ['', 'tiny-imagenet-200'])
def test_tiny_imagenet_from_its_own_folder(tmp_path, inside):
  _tiny_imagenet(tmp_path / inside)
  d = data.load('tiny_imagenet', str(tmp_path), val_size=4)
  assert d.class_names == ('goldfish', 'n01629819')
  assert d.train.image.shape == (20, 64, 64, 3)
  np.testing.assert_array_equal(
    d.test.label, d.test.image[:, 0, 0, 0].astype(int) % 2
  )
  lazy = data.load('tiny_imagenet', str(tmp_path), val_size=4, reading=_lazy())
  np.testing.assert_array_equal(lazy.train.image[np.arange(20)], d.train.image)


def test_tiny_imagenet_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match='no tiny-imagenet-200 in'):
    data.load('tiny_imagenet', str(tmp_path))
  _tiny_imagenet(tmp_path)
  (tmp_path / 'val/val_annotations.txt').write_text('val_0.JPEG\tn09\t0\n')
  with pytest.raises(UserError, match="'n09' has no folder"):
    data.load('tiny_imagenet', str(tmp_path))


def test_the_ten_lines_of_the_page_on_own_data(tmp_path, monkeypatch):
  page = (Path(__file__).parents[2] / 'docs/own_data.md').read_text()
  code = page.split('```python\n')[1].split('```')[0]
  assert code.count('\n') <= 12
  label = np.repeat([0, 1], 300)
  monkeypatch.chdir(tmp_path)
  exec(code, {'image': random_images(600), 'label': label})
  d = data.load('npz:mine.npz')
  assert [len(part.label) for part in d[:3]] == [90, 10, 500]
  assert d.class_names == ('cat', 'dog')
