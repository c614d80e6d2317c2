"""Evaluation: what counts as robust, padding, resume, the ball."""

from conftest import network
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import data, evaluate
from jax_robust_kd.attacks import Budget
from jax_robust_kd.attacks.packing import check_inside
from jax_robust_kd.core import Output

BUDGET = Budget('linf', 0.1, 0.03)


def brightness(variables, image, mode):
  """Class 1 when the mean brightness is above 1/2; sums, so hand-checkable."""
  del variables, mode
  mean = jnp.mean(image, axis=(1, 2, 3))
  return Output(jnp.stack([0.5 - mean, mean - 0.5], axis=1) * 9, {}, {})


def grey(levels) -> data.Split:
  """Flat images of given grey levels, labelled by `brightness`' rule."""
  levels = np.asarray(levels, np.uint8)
  image = np.tile(levels[:, None, None, None], (1, 4, 4, 1))
  return data.Split(image, (levels > 127).astype(np.int32))


def run(split, suite=('pgd-20',), **more):
  found = evaluate.evaluate_suite(
      forward=brightness, variables={}, split=split, suite=suite,
      budget=BUDGET, seed=0, batch_size=4, **more,
  )  # fmt: skip
  return found.correct


def test_an_image_is_robust_exactly_within_the_margin():
  # 0.1 * 255 = 25.5 grey levels: 127.5 +- 25.5 is where an attack succeeds.
  split = grey([0, 90, 101, 103, 120, 135, 152, 154, 200, 255])
  flags = run(split)
  assert flags['clean'].all()
  expected = [1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
  np.testing.assert_array_equal(flags['pgd-20'], np.array(expected, bool))


def test_a_wrong_image_stays_wrong_even_if_an_attack_would_help():
  split = grey([0, 255])._replace(label=np.array([1, 1], np.int32))
  flags = run(split, ('fgsm', 'cw-3'))
  for name in ('clean', 'fgsm', 'cw-3', 'robust'):
    np.testing.assert_array_equal(flags[name], [False, True])


def test_worst_case_is_per_image():
  flags = run(grey([0, 100, 120, 200]), ('fgsm', 'pgd-20', 'cw-20'))
  attacks = [flags[a] for a in ('clean', 'fgsm', 'pgd-20', 'cw-20')]
  np.testing.assert_array_equal(flags['robust'], np.all(attacks, axis=0))


@pytest.mark.parametrize('count', [1, 3, 4, 5, 11])
def test_no_image_is_dropped(count):
  flags = run(grey(np.linspace(0, 255, count)), ('fgsm',))
  assert all(len(v) == count for v in flags.values())


def test_result_does_not_depend_on_the_batches(digits):
  forward, variables = network(0, 4)
  split = data.Split(digits.test.image[:30], digits.test.label[:30])
  a, b = (
    evaluate.make_attack(forward, 'pgd-5', BUDGET, 0, size)(variables, split)
    for size in (4, 16)
  )
  np.testing.assert_allclose(a.adv, b.adv, atol=1e-6)
  np.testing.assert_allclose(a.margin, b.margin, atol=1e-5)


def test_kept_flags_are_used_and_only_for_the_same_weights(tmp_path):
  split = grey([0, 120, 255])
  first = run(split, ('fgsm',), folder=tmp_path, identity='a')
  margin = np.full(3, 1, np.float32)  # all wrong
  np.savez(tmp_path / 'clean-0.npz', identity=np.array('a'), margin=margin)
  resumed = run(split, ('fgsm',), folder=tmp_path, identity='a')
  assert not resumed['robust'].any(), 'the kept flags were not used'
  again = run(split, ('fgsm',), folder=tmp_path, identity='b')
  np.testing.assert_array_equal(again['robust'], first['robust'])


def test_damaged_flags_are_computed_again(tmp_path):
  (tmp_path / 'clean-0.npz').write_bytes(b'PK not a zip file')
  flags = run(grey([0, 255]), ('fgsm',), folder=tmp_path, identity='a')
  assert flags['robust'].all()


def test_the_ball_is_checked_in_float64():
  image = np.full((2, 3, 3, 1), 0.5)
  check_inside(image + 0.1, image, 'linf', 0.1)
  with pytest.raises(AssertionError, match='delta'):
    check_inside(image + 0.1001, image, 'linf', 0.1)
  with pytest.raises(AssertionError, match='delta'):
    check_inside(image + 0.1, image, 'l2', 0.29)
  check_inside(image + 0.1, image, 'l2', 0.31)
  with pytest.raises(AssertionError, match='left'):
    check_inside(image + 0.6, image, 'linf', 1.0)
  with pytest.raises(AssertionError, match='finite'):
    check_inside(image * np.nan, image, 'linf', 1.0)


def test_interval_by_hand():
  low, high = evaluate.interval(50, 100)
  # Wilson at 95 % for 50 of 100: 0.4038 to 0.5962.
  np.testing.assert_allclose([low, high], [0.4038, 0.5962], atol=1e-4)
  assert evaluate.interval(0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_float32_products_are_exact_enough_in_evaluation(digits):
  """The evaluation asks for the highest matmul precision."""
  forward, variables = network(0, 4)
  seen = []

  def spy(variables, image, mode):
    seen.append(jax.config.jax_default_matmul_precision)
    return forward(variables, image, mode)

  split = data.Split(digits.test.image[:4], digits.test.label[:4])
  evaluate.make_attack(spy, 'fgsm', BUDGET, 0, 4)(variables, split)
  assert set(seen) == {'highest'}


@pytest.mark.parametrize('kept', [0, 3])
def test_a_suite_goes_on_where_it_was_killed(kept, tmp_path, monkeypatch):
  """The same flags, margins and images as without the kill."""
  split = grey(np.linspace(0, 255, 600))

  def attack(folder):
    return evaluate.evaluate_suite(
        forward=brightness, variables={}, split=split, batch_size=4,
        suite=('apgd_ce-4',), budget=BUDGET, seed=0, folder=folder,
    )  # fmt: skip

  whole = attack(tmp_path / 'whole')
  assert len(list((tmp_path / 'whole').iterdir())) == 6  # 2 columns, 3 pools
  save, left = evaluate._save, [kept]

  def killed(*args):
    if not left[0]:
      raise KeyboardInterrupt
    left[0] -= 1
    save(*args)

  monkeypatch.setattr(evaluate, '_save', killed)
  with pytest.raises(KeyboardInterrupt):
    attack(tmp_path / 'other')
  monkeypatch.setattr(evaluate, '_save', save)
  jax.tree.map(np.testing.assert_array_equal, whole, attack(tmp_path / 'other'))
