"""Small data sets that tests write: image files, and sets in TFDS' format."""

import io

import numpy as np
from PIL import Image
import pytest


def random_images(n, size=4, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def save_image(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels.squeeze()).save(path)


def write_tfds(root, name, version, parts, config=None, size=4, names=3):
  """Writes a set in the format of TFDS, without TensorFlow.

  Args:
    root: data_dir.
    name: 'imagenet2012'.
    version: of the set, '5.1.0'.
    parts: split -> images, any number of sizes.
    config: of the set, such as 'brightness_1'.
    size: side of the images, None for any.
    names: number of classes; image i is of class i % 3.
  """
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('array_record')
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=(size, size, 3)),
      'label': tfds.features.ClassLabel(num_classes=names),
    }
  )

  def info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      disable_shuffling=True,
      features=features,
      supervised_keys=('image', 'label'),
    )

  def examples(images):
    for place, pixels in enumerate(images):
      png = io.BytesIO()
      Image.fromarray(pixels).save(png, 'PNG')
      png.seek(0)
      yield place, {'image': png, 'label': place % 3}

  class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)
    _info = info

    def _split_generators(self, dl_manager):
      return {part: examples(images) for part, images in parts.items()}

    def _generate_examples(self):
      raise NotImplementedError

  Written.name = name
  if config:
    found = tfds.core.BuilderConfig(name=config, version=version)
    Written.BUILDER_CONFIGS = [found]
  Written(data_dir=root, file_format='array_record').download_and_prepare()
