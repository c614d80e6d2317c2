"""Accuracy on corrupted test sets."""

from helpers.written import random_images, write_tfds
import numpy as np

from jax_robust_kd import data
from jax_robust_kd.config import base_config
from jax_robust_kd.evaluation import corruptions
from jax_robust_kd.training import build


def test_each_corruption_is_its_own_test_set(tmp_path):
  clean = random_images(30, 32, seed=1)
  parts = {'train': random_images(40, 32), 'test': clean}
  write_tfds(tmp_path, 'cifar10', '3.0.2', parts, size=32, names=10)
  for config, images in (('fog_1', clean), ('fog_5', 255 - clean)):
    write_tfds(
        tmp_path, 'cifar10_corrupted', '1.0.0', {'test': images}, config,
        size=32, names=10,
    )  # fmt: skip
  c = base_config('cifar10')
  c.data.data_dir = str(tmp_path)
  c.eval.corruptions = ('fog_1', 'fog_5')
  c.student = {'name': 'small_resnet', 'depth': 8, 'width': 4}
  dataset = data.load('cifar10', str(tmp_path), val_size=6)
  network = build.init_network(c, dataset)
  said = []
  found = corruptions.measure(c, network, said.append)
  assert list(found) == ['fog_1', 'fog_5'] and len(said) == 2

  def accuracy(image):
    logits = network.forward(
      network.variables, image / np.float32(255), 'eval'
    ).logits
    return 100 * float(np.mean(logits.argmax(axis=1) == dataset.test.label))

  assert found['fog_1'] == accuracy(clean)
  assert found['fog_5'] == accuracy(255 - clean)
