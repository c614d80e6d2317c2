import itertools

import numpy as np
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import UserError

N, BATCH = 50, 12


@pytest.fixture(scope='module')
def split():
  """Images that hold their own place in the split."""
  place = np.arange(N, dtype=np.uint8)
  image = np.broadcast_to(place[:, None, None, None], (N, 2, 3, 1))
  return data.Split(image.copy(), np.arange(N, dtype=np.int32) % 7)


def _take(split, steps, start=0, **kwargs):
  kwargs = {'batch_size': BATCH, 'seed': 3, 'start_step': start, **kwargs}
  return list(itertools.islice(data.train_batches(split, **kwargs), steps))


def _rows(batch):
  return batch['image'][..., 0, 0, 0].ravel()


def _same(one, other):
  assert one.keys() == other.keys()
  for key in one:
    np.testing.assert_array_equal(one[key], other[key])


def test_num_batches_counts_full_ones():
  assert data.num_batches(50, 12) == 4
  assert data.num_batches(48, 12) == 4
  assert data.num_batches(12, 12) == 1


@pytest.mark.parametrize('n, batch_size', [(11, 12), (0, 1), (5, 0)])
def test_num_batches_of_too_few_images(n, batch_size):
  with pytest.raises(UserError, match=f'batch_size={batch_size} does not fit'):
    data.num_batches(n, batch_size)


def test_epoch_order_is_a_pure_permutation():
  one = data.epoch_order(5, 2, 1000)
  assert sorted(one) == list(range(1000))
  np.testing.assert_array_equal(one, data.epoch_order(5, 2, 1000))
  for other in (data.epoch_order(5, 3, 1000), data.epoch_order(6, 2, 1000)):
    assert np.mean(one == other) < 0.05


def test_batch_shapes_types_and_content(split):
  (batch,) = _take(split, 1, num_local_devices=3)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'image': ((3, 4, 2, 3, 1), np.uint8),
    'label': ((3, 4), np.int32),
    'index': ((3, 4), np.int32),
    'row': ((3, 4), np.int32),
  }
  np.testing.assert_array_equal(batch['index'].ravel(), np.arange(BATCH))
  np.testing.assert_array_equal(batch['row'].ravel(), _rows(batch))
  np.testing.assert_array_equal(_rows(batch) % 7, batch['label'].ravel())
  np.testing.assert_array_equal(_rows(batch), data.epoch_order(3, 0, N)[:BATCH])


def test_an_epoch_repeats_no_image_and_the_next_differs(split):
  rows = [_rows(batch) for batch in _take(split, 8)]
  for epoch in (rows[:4], rows[4:]):
    assert len(set(np.concatenate(epoch))) == 4 * BATCH
  assert any(np.any(a != b) for a, b in zip(rows[:4], rows[4:], strict=True))


@pytest.mark.parametrize('start', [0, 1, 3, 4, 6, 9])
def test_resume_equals_the_uninterrupted_sequence(split, start):
  whole = _take(split, 12)
  resumed = _take(split, 12 - start, start)
  for one, other in zip(whole[start:], resumed, strict=True):
    _same(one, other)


@pytest.mark.parametrize('processes, devices', [(1, 4), (2, 2), (4, 1), (2, 1)])
def test_shards_together_are_the_global_batch(split, processes, devices):
  shards = [
    _take(
      split,
      6,
      start=2,
      process_index=p,
      process_count=processes,
      num_local_devices=devices,
    )
    for p in range(processes)
  ]
  for step, whole in enumerate(_take(split, 6, start=2)):
    for key, value in whole.items():
      parts = [shard[step][key] for shard in shards]
      assert all(part.shape[0] == devices for part in parts)
      flat = np.concatenate([p.reshape(-1, *value.shape[2:]) for p in parts])
      np.testing.assert_array_equal(flat, value[0])


def test_training_batch_that_does_not_divide(split):
  with pytest.raises(UserError, match='data.batch_size=12 does not divide'):
    _take(split, 0, process_count=5)
  with pytest.raises(UserError, match='use a multiple of 8'):
    _take(split, 0, process_count=2, num_local_devices=4)


def test_training_batch_larger_than_the_split(split):
  with pytest.raises(UserError, match='batch_size=64 does not fit 50'):
    _take(split, 0, batch_size=64)
