"""Images from files: turned, on white, and only the formats that are meant."""

import io
import os

from helpers.written import random_images, save_image
import numpy as np
from PIL import Image
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import UserError
from jax_robust_kd.data import decode as decode_lib
from jax_robust_kd.data.decode import Damaged, decode


def encoded(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def exif(orientation: int) -> Image.Exif:
  found = Image.Exif()
  found[0x0112] = orientation
  return found


@pytest.mark.parametrize('orientation, turns', [(1, 0), (6, 3), (3, 2), (8, 1)])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_exif_orientation(orientation, turns, kind):
  """A photo is upright, whichever way the camera was held."""
  pixels = np.zeros((16, 24, 3), np.uint8)
  pixels[:8, :8] = 255
  upright = np.rot90(pixels, turns)
  content = encoded(Image.fromarray(pixels), kind, exif=exif(orientation))
  found = decode('x', content, upright.shape)
  np.testing.assert_allclose(found.astype(int), upright, atol=40)


def test_a_folder_of_turned_photos(tmp_path):
  for seed, part in enumerate(('train', 'test')):
    for place, name in enumerate(('ant', 'bee') * 4):
      path = tmp_path / part / name / f'{place}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = random_images(1, 16, seed=10 * seed + place)[0, :8]
      Image.fromarray(pixels).save(path, exif=exif(6))
  assert data.load(str(tmp_path)).train.image.shape[1:] == (16, 8, 3)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_what_is_transparent_is_white(mode):
  pixels = np.full((4, 4, 4), (10, 10, 10, 255), np.uint8)
  pixels[:2, :, 3] = 0
  image = Image.fromarray(pixels).convert(mode)
  for channels in (1, 3) if mode == 'LA' else (3,):
    found = decode('x', encoded(image), (4, 4, channels))
    assert (found[:2] == 255).all() and (found[2:] == 10).all()


def test_half_transparent_and_four_channels():
  image = Image.new('RGBA', (2, 2), (0, 100, 200, 51))
  found = decode('x', encoded(image), (2, 2, 3))
  np.testing.assert_allclose(found[0, 0], [204, 224, 244], atol=1)
  found = decode('x', encoded(image), (2, 2, 4))
  np.testing.assert_array_equal(found[0, 0], [0, 100, 200, 51])


@pytest.mark.parametrize('kind', ['GIF', 'BMP', 'TIFF', 'PPM', 'EPS', 'WEBP'])
def test_other_formats_are_damaged(kind):
  content = encoded(Image.new('RGB', (8, 8), 'red'), kind)
  with pytest.raises(Damaged, match='cannot identify'):
    decode('x.png', content, (8, 8, 3))


def test_images_beyond_all_size(monkeypatch):
  """Before their pixels are read."""
  thin = encoded(Image.new('L', (1, 60_000)))
  with pytest.raises(Damaged, match='256 x 15360000 pixels'):
    decode('x', thin, (224, 224, 1), fit=True)
  monkeypatch.setattr(decode_lib, '_MAX_PIXELS', 99)
  monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('read'))
  with pytest.raises(Damaged, match='10 x 10 pixels; at most 99 are read'):
    decode('x', encoded_of_ten, (10, 10, 1))


encoded_of_ten = encoded(Image.new('L', (10, 10)))


def huge_file(path):
  path.touch()
  os.truncate(path, 2**28 + 1)


@pytest.mark.parametrize(
  'make, reason',
  [
    (os.mkfifo, 'no regular file'),
    (lambda path: path.symlink_to('/dev/zero'), 'no regular file'),
    (lambda path: path.mkdir(), 'no regular file'),
    (huge_file, 'bytes'),
    (lambda path: path.touch(), 'cannot identify'),
  ],
  ids=['pipe', 'endless device', 'folder', 'huge', 'empty'],
)
def test_files_that_are_no_images(make, reason, tmp_path, capfd):
  """None is waited for; each is named like a damaged image."""
  for seed, part in enumerate(('train', 'test')):
    for place, name in enumerate(('ant', 'bee') * 4):
      path = tmp_path / part / name / f'{place}.png'
      save_image(path, random_images(1, seed=10 * seed + place)[0])
  make(tmp_path / 'train' / 'ant' / 'a.png')
  with pytest.raises(UserError, match=rf'ant/a.png: .*damaged.*{reason}'):
    data.load(str(tmp_path))
  d = data.load(str(tmp_path), reading=data.Reading(damaged='skip'))
  assert len(d.train.label) + len(d.val.label) == 8
  assert 'skipped: ' in capfd.readouterr().err
