from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import UserError
from jax_robust_kd.data import augment as lib
from jax_robust_kd.data import to_float

B, H, W, K = 16, 8, 8, 10
ALL = {'crop_pad': 2, 'flip': True, 'cutout': 3}


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (B, H, W, 3), dtype=np.uint8)
  return np.arange(B), image, rng.integers(0, K, B).astype(np.int32)


def _keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def _make(**options):
  return jax.jit(data.make_augment(num_classes=K, **options))


def test_all_off_is_exactly_image_and_one_hot(batch):
  index, image, label = batch
  out = _make()(jax.random.key(0), index, image, label)
  np.testing.assert_array_equal(out.image, jax.jit(to_float)(image))
  np.testing.assert_allclose(out.image, image / 255, atol=6e-8)
  np.testing.assert_array_equal(out.target, np.eye(K, dtype=np.float32)[label])
  assert out.image.dtype == out.target.dtype == np.float32


@pytest.mark.parametrize(
  'options',
  [
    ALL,
    {'mixup_alpha': 0.2},
    {'cutmix_alpha': 1.0},
    {**ALL, 'mixup_alpha': 1.0, 'cutmix_alpha': 1.0, 'label_smoothing': 0.1},
  ],
)
def test_range_mass_and_one_compilation(batch, options):
  run = _make(**options)
  for seed in range(20):
    out = run(jax.random.key(seed), *batch)
    assert out.image.shape == batch[1].shape
    assert out.image.dtype == jnp.float32
    assert out.image.min() >= 0 and out.image.max() <= 1
    assert out.target.min() >= 0
    np.testing.assert_allclose(out.target.sum(-1), 1, atol=1e-6)
  assert run._cache_size() == 1


def test_same_key_same_image_whatever_the_batch(batch):
  index, image, label = batch
  run = _make(**ALL)
  key = jax.random.key(4)
  whole = run(key, index, image, label)
  order = np.array([11, 2, 7])
  part = run(key, index[order], image[order], label[order])
  np.testing.assert_array_equal(part.image, whole.image[order])
  moved = run(key, index[order] + 1, image[order], label[order])
  assert np.any(moved.image != part.image)


def test_switching_one_off_leaves_the_others_as_they_were(batch):
  one = _make(crop_pad=2, flip=True)(jax.random.key(0), *batch)
  two = _make(crop_pad=2, flip=True, cutout=3)(jax.random.key(0), *batch)
  kept = np.asarray(two.image) != 0
  assert kept.mean() > 0.5
  np.testing.assert_array_equal(two.image[kept], one.image[kept])


def test_devices_do_not_change_the_result(batch):
  """As with pmap: vmap over devices, each with its part, and one key."""
  run = _make(mixup_alpha=1.0, cutmix_alpha=1.0, **ALL)
  key = jax.random.key(2)
  whole = run(key, *batch)
  parts = [x.reshape(4, -1, *x.shape[1:]) for x in batch]
  out = jax.vmap(partial(run, key), axis_name='batch')(*parts)
  np.testing.assert_allclose(
    out.image.reshape(whole.image.shape), whole.image, atol=1e-6
  )
  np.testing.assert_allclose(
    out.target.reshape(whole.target.shape), whole.target, atol=1e-6
  )


def test_augment_runs_under_pmap(batch):
  run = _make(flip=True, mixup_alpha=1.0)
  key = jax.random.key(2)
  parts = [x[None] for x in batch]
  out = jax.pmap(partial(run, key))(*parts)
  whole = run(key, *batch)
  np.testing.assert_allclose(out.image[0], whole.image, atol=1e-6)


def test_crop_reaches_every_offset_with_zero_padding():
  pad, n = 2, 600
  image = np.arange(1, H * W + 1, dtype=np.float32).reshape(H, W, 1)
  crop = jax.jit(partial(lib.random_crop, pad=pad))
  out = np.asarray(crop(_keys(n), np.tile(image, (n, 1, 1, 1))))
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  windows = {
    padded[y : y + H, x : x + W].tobytes(): (y, x)
    for y in range(2 * pad + 1)
    for x in range(2 * pad + 1)
  }
  seen = [windows[one.tobytes()] for one in out]
  assert set(seen) == set(windows.values())
  counts = np.unique(seen, axis=0, return_counts=True)[1]
  # 24 expected for each of 25 offsets, standard deviation 4.8.
  assert counts.min() > 5 and counts.max() < 48


def test_flip_mirrors_half_of_the_images_left_to_right():
  n = 2000
  image = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
  flip = jax.jit(lib.random_flip)
  out = np.asarray(flip(_keys(n), np.tile(image, (n, 1, 1, 1))))
  flipped = (out == image[:, ::-1]).all((1, 2, 3))
  same = (out == image).all((1, 2, 3))
  assert np.all(flipped ^ same)
  assert abs(flipped.mean() - 0.5) < 0.05  # 4.5 standard deviations


@pytest.mark.parametrize('size', [3, 4])
def test_cutout_covers_one_square_that_may_overhang(size):
  n = 800
  cutout = jax.jit(lib.random_cutout, static_argnums=2)
  out = cutout(_keys(n), jnp.ones((n, H, W, 2)), size)
  covered = np.asarray(out) == 0
  np.testing.assert_array_equal(covered[..., 0], covered[..., 1])
  covered = covered[..., 0]
  assert covered.sum((1, 2)).max() == size**2
  assert covered.any(0).all()  # every pixel is covered at some time
  rows, columns = covered.any(2).sum(1), covered.any(1).sum(1)
  np.testing.assert_array_equal(rows * columns, covered.sum((1, 2)))
  assert rows.min() == size - size // 2  # overhangs, the centre stays inside
  filled = cutout(_keys(n), jnp.ones((n, H, W, 2)), size, 0.25)
  np.testing.assert_array_equal(np.asarray(filled)[..., 0] == 0.25, covered)


def test_mixup_blends_neighbours_with_one_lambda(batch):
  index, image, label = batch
  run = _make(mixup_alpha=1.0)
  x = image.astype(np.float64) / 255
  t = np.eye(K)[label]
  partner = index ^ 1
  lambdas = []
  for seed in range(50):
    out = run(jax.random.key(seed), *batch)
    lam = _share(out.target, t, t[partner])
    lambdas.append(lam)
    mixed = lam * x + (1 - lam) * x[partner]
    np.testing.assert_allclose(out.image, mixed, atol=1e-5)
    target = lam * t + (1 - lam) * t[partner]
    np.testing.assert_allclose(out.target, target, atol=1e-5)
  assert np.std(lambdas) > 0.2  # Beta(1, 1): uniform, 0.29


def _share(mixed, own, other):
  """The lambda for which mixed = lambda * own + (1 - lambda) * other."""
  difference = own - other
  return float(np.sum((mixed - other) * difference) / np.sum(difference**2))


def test_cutmix_pastes_a_box_and_mixes_labels_by_its_area(batch):
  index, image, label = batch
  run = _make(cutmix_alpha=1.0)
  x = np.asarray(jax.jit(to_float)(image))
  partner = index ^ 1
  areas = []
  for seed in range(60):
    out = run(jax.random.key(seed), *batch)
    own = (np.asarray(out.image) == x).all(-1)
    other = (np.asarray(out.image) == x[partner]).all(-1)
    assert np.all(own | other)
    box = ~own.all(0)
    assert np.all(box == (box.any(1)[:, None] & box.any(0)[None]))
    areas.append(box.mean())
    t = np.eye(K)[label]
    target = (1 - box.mean()) * t + box.mean() * t[partner]
    np.testing.assert_allclose(out.target, target, atol=1e-6)
  assert min(areas) < 0.1 and max(areas) > 0.5


def test_cutmix_box_has_the_area_of_its_equation_before_clipping():
  box = jax.jit(jax.vmap(lambda key: lib._cutmix_box(key, 0.75, 32, 16)))
  area = np.asarray(box(_keys(400))).sum((1, 2))
  assert area.max() == 0.25 * 32 * 16
  assert area.min() < 0.1 * 32 * 16


@pytest.mark.parametrize(
  'prob, low, high', [(0, 0, 0), (1, 1, 1), (0.5, 0.3, 0.7)]
)
def test_a_coin_chooses_mixup_or_cutmix_for_the_batch(batch, prob, low, high):
  run = _make(mixup_alpha=1.0, cutmix_alpha=1.0, cutmix_prob=prob)
  x = np.asarray(jax.jit(to_float)(batch[1]))
  partner = batch[0] ^ 1

  def pasted(seed):
    out = np.asarray(run(jax.random.key(seed), *batch).image)
    return bool(np.all((out == x) | (out == x[partner])))

  rate = np.mean([pasted(seed) for seed in range(60)])
  assert low <= rate <= high


def test_small_alpha_stays_finite(batch):
  run = _make(mixup_alpha=0.01)
  for seed in range(30):
    out = run(jax.random.key(seed), *batch)
    assert np.isfinite(out.image).all() and np.isfinite(out.target).all()


def test_label_smoothing_by_hand():
  target = lib.one_hot(jnp.array([1]), 4, 0.2)
  np.testing.assert_allclose(target, [[0.05, 0.85, 0.05, 0.05]], atol=1e-7)


def test_mixing_an_odd_batch_is_an_error(batch):
  run = data.make_augment(num_classes=K, mixup_alpha=1.0)
  with pytest.raises(UserError, match='even number'):
    run(jax.random.key(0), *(x[:5] for x in batch))


@pytest.mark.parametrize(
  'option',
  [
    {'crop_pad': -1},
    {'cutout': -2},
    {'mixup_alpha': -0.1},
    {'cutmix_alpha': float('nan')},
    {'cutmix_prob': 1.5},
    {'cutout_fill': 255},
    {'label_smoothing': 1.2},
  ],
)
def test_values_out_of_range(option):
  with pytest.raises(UserError, match=f'augment.{next(iter(option))}='):
    data.make_augment(num_classes=K, **option)
