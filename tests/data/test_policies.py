from functools import partial
import inspect
from types import SimpleNamespace as Namespace

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest

from jax_robust_kd import data
from jax_robust_kd.core import UserError
from jax_robust_kd.data import image_ops, preview, spatial
from jax_robust_kd.data.policies import Policy, apply_policy, make_policy
from jax_robust_kd.data.policy_tables import (
  AUTOAUGMENT,
  COLOR_BIASED,
  EQUAL,
  IDBH,
  POLICIES,
  SHAPE_BIASED,
)

B, SIDE, K = 8, 16, 4


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8)
  return np.arange(B), image, rng.integers(0, K, B).astype(np.int32)


def _keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def _make(**options):
  return jax.jit(data.make_augment(num_classes=K, **options))


# The tables.


def test_autoaugment_has_the_papers_sub_policies():
  """Spot checks of the three tables in arXiv:1805.09501, appendix."""
  cifar10 = AUTOAUGMENT['autoaugment_cifar10']
  assert cifar10[0] == ('invert', 0.1, 0, 'contrast', 0.2, 6)
  assert cifar10[1] == ('rotate', 0.7, 2, 'translate_x', 0.3, 9)
  assert cifar10[9] == ('contrast', 0.6, 7, 'sharpness', 0.6, 5)
  assert cifar10[14] == ('solarize', 0.5, 2, 'invert', 0.0, 0)
  assert cifar10[19] == ('brightness', 0.1, 3, 'color', 0.7, 0)
  assert cifar10[24] == ('translate_y', 0.7, 9, 'autocontrast', 0.9, 0)
  svhn = AUTOAUGMENT['autoaugment_svhn']
  assert svhn[1] == ('shear_y', 0.9, 8, 'invert', 0.7, 0)
  assert svhn[24] == ('shear_x', 0.7, 2, 'invert', 0.1, 0)
  imagenet = AUTOAUGMENT['autoaugment_imagenet']
  assert imagenet[0] == ('posterize', 0.4, 8, 'rotate', 0.6, 9)
  assert imagenet[14] == ('color', 0.6, 4, 'contrast', 1.0, 8)
  for table in AUTOAUGMENT.values():
    assert len(table) == 25
    names = {name for row in table for name in (row[0], row[3])}
    assert names <= {*EQUAL, 'invert'}
    assert all(0 <= p <= 1 for row in table for p in (row[1], row[4]))


@pytest.mark.parametrize('table', [COLOR_BIASED, SHAPE_BIASED])
def test_idbh_shares_sum_to_one(table):
  assert sum(share for _, share, _, _ in table) == pytest.approx(1)


def _entry(policy, row, i=0):
  """Returns the choices of one operation of one row."""
  return image_ops.Op(*(field[row, i] for field in policy.ops))


def _assert_choices(policy, row, ops, i=0):
  expected = image_ops.stack(ops, (len(ops),))
  jax.tree.map(np.testing.assert_array_equal, _entry(policy, row, i), expected)


def test_autoaugment_magnitudes():
  """By hand: magnitude m of 9, with both signs where there is one."""
  policy = make_policy('autoaugment_cifar10', (24, 32))
  two_ninths = float(np.float32(30) / np.float32(9)) * 2
  turn = partial(image_ops.rotate, height=24, width=32)
  _assert_choices(policy, 1, [turn(two_ninths), turn(-two_ninths)])
  x = [image_ops.translate_x(p) for p in (14, -14)]  # 150 / 331 of 32
  _assert_choices(policy, 1, x, i=1)
  y = [image_ops.translate_y(p) for p in (10, -10)]  # of 24
  _assert_choices(policy, 3, y, i=1)
  _assert_choices(policy, 0, [image_ops.invert()] * 2)
  _assert_choices(policy, 5, [image_ops.posterize(5)] * 2, i=1)
  _assert_choices(policy, 22, [image_ops.solarize(170)] * 2, i=1)
  color = policy.ops.factor[17, 0]
  np.testing.assert_allclose(color, [1.9, 0.1], rtol=1e-6)
  np.testing.assert_array_equal(policy.prob[0], [0.1, 0.2])


def test_randaugment_magnitudes():
  policy = make_policy('randaugment', (32, 32), num_ops=3, magnitude=30)
  assert policy.repeats == 3 and policy.prob.shape == (14, 1)
  turns = [image_ops.rotate(d, 32, 32) for d in (30, -30)]
  _assert_choices(policy, EQUAL.index('rotate'), turns)
  _assert_choices(
    policy, EQUAL.index('posterize'), [image_ops.posterize(4)] * 2
  )
  _assert_choices(policy, EQUAL.index('solarize'), [image_ops.solarize(0)] * 2)
  weakest = make_policy('randaugment', (32, 32), magnitude=0)
  _assert_choices(weakest, EQUAL.index('shear_x'), [image_ops.Op()] * 2)


def test_trivialaugment_is_wide():
  policy = make_policy('trivialaugment_wide', (32, 32))
  assert policy.repeats == 1 and policy.ops.level.shape == (14, 1, 62)
  last = {name: _entry(policy, EQUAL.index(name)) for name in EQUAL}
  assert last['posterize'].level[-1] == 2
  np.testing.assert_allclose(last['color'].factor[-2:], [1.99, 0.01], rtol=1e-5)
  turn = image_ops.stack([image_ops.rotate(-135, 32, 32)], (1,))
  np.testing.assert_array_equal(last['rotate'].matrix[-1], turn.matrix[0])


def test_idbh_magnitudes_are_uniform_and_degrees_whole():
  policy = make_policy('idbh_weak', (32, 32))
  bright = _entry(policy, 1).factor
  assert bright.min() == pytest.approx(0.5, abs=0.003)
  assert bright.max() == pytest.approx(1.9, abs=0.003)
  assert bright.mean() == pytest.approx(1.2, abs=1e-5)
  turns = np.unique(_entry(policy, 8).matrix, axis=0, return_counts=True)[1]
  np.testing.assert_array_equal(turns, np.full(20, 30))  # +-1 .. +-10 degrees


# How they are applied.


def _grey_levels(policy, n):
  """What becomes of n images of grey level 200."""
  image = np.full((n, 2, 2, 1), 200, np.uint8)
  run = jax.jit(partial(apply_policy, policy=policy))
  return np.asarray(run(_keys(n), image))[:, 0, 0, 0]


def test_rows_magnitudes_and_coins_have_their_frequencies():
  ops = [image_ops.brightness(f) for f in (0.1, 0.2, 0.3, 0.4)]
  policy = Policy(
    image_ops.stack(ops, (2, 1, 2)),
    prob=np.array([[1.0], [0.5]]),
    weight=np.array([0.75, 0.25]),
  )
  levels, counts = np.unique(_grey_levels(policy, 4000), return_counts=True)
  np.testing.assert_array_equal(levels, [20, 40, 60, 80, 200])
  expected = np.array([1500, 1500, 250, 250, 500])
  # Five standard deviations of a count.
  assert np.all(abs(counts - expected) < 5 * np.sqrt(expected))


def test_probability_zero_is_never_and_one_always():
  ops = image_ops.stack([image_ops.brightness(0.1)], (1, 1, 1))
  one, zero = (
    _grey_levels(Policy(ops, np.array([[p]]), np.ones(1)), 500)
    for p in (1.0, 0.0)
  )
  assert set(one) == {20} and set(zero) == {200}


def test_repeats_draw_again():
  ops = [image_ops.brightness(0.5), image_ops.brightness(0.1)]
  policy = Policy(
    image_ops.stack(ops, (2, 1, 1)), np.ones((2, 1)), np.full(2, 0.5), 2
  )
  levels, counts = np.unique(_grey_levels(policy, 800), return_counts=True)
  np.testing.assert_array_equal(levels, [2, 10, 50])
  assert abs(counts[1] - 400) < 75


def test_operations_of_a_row_are_applied_in_order(batch):
  ops = [image_ops.solarize(100), image_ops.brightness(0.5)]
  policy = Policy(image_ops.stack(ops, (1, 2, 1)), np.ones((1, 2)), np.ones(1))
  out = jax.jit(partial(apply_policy, policy=policy))(_keys(B), batch[1])
  for one, result in zip(batch[1], out, strict=True):
    first = ImageOps.solarize(Image.fromarray(one), 100)
    second = np.asarray(ImageEnhance.Brightness(first).enhance(0.5))
    np.testing.assert_array_equal(result, second)


@pytest.mark.parametrize('name', POLICIES)
def test_every_policy_keeps_range_and_shape_and_has_a_key_per_image(
  batch, name
):
  index, image, label = batch
  run, key = _make(policy=name), jax.random.key(5)
  whole = run(key, *batch)
  assert whole.image.shape == image.shape and whole.image.dtype == jnp.float32
  assert whole.image.min() >= 0 and whole.image.max() <= 1
  np.testing.assert_array_equal(whole.target, np.eye(K)[label])
  order = np.random.default_rng(1).permutation(B)
  moved = run(key, index[order], image[order], label[order])
  np.testing.assert_array_equal(moved.image, whole.image[order])
  same = np.broadcast_to(image[:1], image.shape)
  views = np.asarray(run(key, index, same, label).image)
  assert len(np.unique(views.reshape(B, -1), axis=0)) > B // 3
  other = run(jax.random.key(6), *batch)
  assert np.any(other.image != whole.image)
  assert run._cache_size() == 1


def test_a_policy_before_mixing_keeps_the_labels_mass(batch):
  run = _make(policy='trivialaugment_wide', mixup_alpha=1.0, cutmix_alpha=1.0)
  for seed in range(5):
    out = run(jax.random.key(seed), *batch)
    assert out.image.min() >= 0 and out.image.max() <= 1
    np.testing.assert_allclose(out.target.sum(-1), 1, atol=1e-6)


def test_policies_take_grey_images(digits):
  run = _make(policy='autoaugment_cifar10')
  out = run(
    jax.random.key(0), np.arange(4), digits.train.image[:4], np.arange(4)
  )
  assert out.image.shape == (4, 8, 8, 1)


def test_a_policy_leaves_crop_and_flip_as_they_were(batch):
  key = jax.random.key(0)
  plain = _make(crop_pad=2, flip=True)(key, *batch)
  weakest = dict(policy='randaugment', policy_ops=0)
  with_policy = _make(crop_pad=2, flip=True, **weakest)(key, *batch)
  np.testing.assert_array_equal(with_policy.image, plain.image)


# Cropshift, erasing and resized crops.


def test_shift_moves_a_window_and_blackens_the_rest():
  n, side, largest = 300, 12, 5
  image = np.arange(1, side * side + 1, dtype=np.uint8).reshape(side, side, 1)
  shift = jax.jit(partial(spatial.random_shift, largest=largest))
  out = np.asarray(shift(_keys(n), np.tile(image, (n, 1, 1, 1))))[..., 0]
  losses = []
  for one in out:
    y, x = (np.flatnonzero(one.any(axis)) for axis in (1, 0))
    window = one[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
    top, left = divmod(int(window[0, 0]) - 1, side)
    rows, columns = window.shape
    source = image[top : top + rows, left : left + columns, 0]
    np.testing.assert_array_equal(window, source)
    assert np.count_nonzero(one) == window.size
    losses.append(2 * side - rows - columns)
  counts = np.bincount(losses, minlength=largest + 1)
  assert len(counts) == largest + 1
  assert counts.min() > 20  # 50 expected for each


def test_shifting_everything_away_is_an_error(batch):
  with pytest.raises(UserError, match='crop_shift=16 .* at most 15'):
    _make(crop_shift=SIDE)(jax.random.key(0), *batch)


def test_erasing_covers_one_box_inside():
  n, side = 600, 32
  erase = jax.jit(partial(spatial.random_erase, prob=0.5, area=0.33))
  out = np.asarray(erase(_keys(n), np.ones((n, side, side, 2), np.float32)))
  covered = out[..., 0] == 0
  np.testing.assert_array_equal(covered, out[..., 1] == 0)
  rows, columns = covered.any(2).sum(1), covered.any(1).sum(1)
  np.testing.assert_array_equal(rows * columns, covered.sum((1, 2)))
  some = rows > 0
  assert abs(some.mean() - 0.5) < 0.1
  area = covered.mean((1, 2))[some]
  assert 0.015 < area.min() < 0.04 and 0.29 < area.max() < 0.35
  ratio = (rows / np.maximum(columns, 1))[some]
  assert 0.2 < ratio.min() < 0.5 and 2 < ratio.max() < 4.5


def test_resized_crops_see_a_window_of_the_right_size():
  """On a ramp, the window's size is the slope and its place the offset."""
  n, side = 400, 64
  y, x = np.mgrid[:side, :side].astype(np.float32)
  image = np.tile(np.stack([y, x], -1), (n, 1, 1, 1))
  crop = jax.jit(partial(spatial.random_resized_crop, smallest=0.3))
  out = np.asarray(crop(_keys(n), image))
  middle = side // 2
  rows = (out[:, middle + 4, middle, 0] - out[:, middle, middle, 0]) / 4 * side
  columns = (
    (out[:, middle, middle + 4, 1] - out[:, middle, middle, 1]) / 4 * side
  )
  area = rows * columns / side**2
  assert 0.27 < area.min() < 0.33 and 0.9 < area.max() < 1.001
  ratio = rows / columns
  assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.37
  assert out.min() >= 0 and out.max() <= side - 1


# What users may get wrong.


@pytest.mark.parametrize(
  'options, message',
  [
    (
      {'policy': 'autoaugment'},
      "policy='autoaugment' is unknown; use one of: ",
    ),
    ({'policy_magnitude': 31}, 'policy_magnitude=31 is wrong; use 0 to 30'),
    ({'erase_prob': 1.5}, 'erase_prob=1.5 is wrong; use 0 to 1'),
    ({'resized_crop': -0.1}, 'resized_crop=-0.1 is wrong; use 0 to 1'),
    ({'crop_pad': 4, 'crop_shift': 3}, 'set one of them to 0'),
    ({'policy': 'idbh_weak', 'crop_pad': 4}, 'set data.augment.crop_pad=0'),
    ({'policy': 'idbh_svhn', 'erase_prob': 1}, 'set data.augment.erase_prob=0'),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(UserError, match=message):
    data.make_augment(num_classes=K, **options)


# The contact sheet.


def test_the_sheet_shows_every_augmentation():
  known = inspect.signature(data.make_augment).parameters
  rows = preview.rows_for(32)
  for options in rows.values():
    assert options.keys() <= known.keys()
    data.make_augment(num_classes=K, **options)
  assert {r['policy'] for r in rows.values() if 'policy' in r} == set(POLICIES)
  assert not preview.rows_for(8).keys() & IDBH.keys()


def test_the_sheet_is_drawn_in_rows(batch):
  image = batch[1][:4]
  rows = {'a': preview.views(image, {}, seed=0), 'b': 255 - image[:2]}
  sheet = np.asarray(preview.draw(rows, side=SIDE))
  step = SIDE + 2
  assert sheet.shape == (2 * step, 150 + 4 * step, 3)
  left = 150 + 3 * step
  np.testing.assert_array_equal(sheet[:SIDE, left : left + SIDE], image[3])
  assert np.all(sheet[step:, left:] == 255)


def test_an_odd_sheet_is_an_error():
  with pytest.raises(UserError, match='--images=3'):
    preview.run(Namespace(images=3))
