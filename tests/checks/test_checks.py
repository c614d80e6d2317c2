"""The report must be red on broken defences, and on no honest network."""

import json
import math

from helpers import broken_defences as broken
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import checks
from jax_robust_kd.attacks import Budget, Result
from jax_robust_kd.checks import (
  attacking,
  basic,
  programs,
  report,
  subject,
  trials,
)
from jax_robust_kd.core import UserError

BUDGET = Budget('linf', broken.EPSILON, 0.025, num_targets=3)
EFFORT = checks.Effort(
    num_images=64, num_steps=20, num_restarts=2, num_queries=300, num_draws=100
)  # fmt: skip


@pytest.fixture(scope='session')
def nets(digits):
  """An undefended network and one trained on attacked images."""
  return {
    'undefended': broken.train(digits.train, 0.0),
    'trained under attack': broken.train(digits.train, broken.EPSILON),
  }


def run(apply, digits, budget=BUDGET, effort=EFFORT, **more):
  return checks.run(
      apply, digits.test.image, digits.test.label, budget=budget,
      effort=effort, batch_size=32, **more,
  )  # fmt: skip


def named(found, level='red') -> set[str]:
  return {c.name for c in found if c.level == level}


# Networks.


@pytest.mark.parametrize('name', ['undefended', 'trained under attack'])
def test_honest_networks_are_not_red(name, nets, digits):
  found = run(broken.apply(nets[name]), digits)
  assert not named(found), checks.as_text(found)
  accuracy = {c.name: c.value for c in found}['square']['white box']
  # What is checked must be something: neither all nor nothing is robust.
  assert 20 < accuracy < 95


@pytest.mark.parametrize('norm, epsilon', [('l2', 0.5), ('l1', 2.0)])
def test_other_norms(norm, epsilon, nets, digits):
  budget = BUDGET._replace(norm=norm, epsilon=epsilon)
  found = run(broken.apply(nets['trained under attack']), digits, budget)
  assert not named(found), checks.as_text(found)
  gone = run(
    broken.apply(nets['undefended'], broken.BROKEN['quantised']), digits, budget
  )
  assert {'gradients', 'square'} <= named(gone), checks.as_text(gone)


REASONS = {
  'logits x1000': {'scale', 'gradients'},
  'quantised': {'gradients', 'square'},
  'softmax': {'logits'},
  'batchnorm in train mode': {'batches'},
}


@pytest.mark.parametrize('name', sorted(broken.BROKEN))
def test_broken_defence(name, nets, digits):
  apply = broken.apply(nets['undefended'], broken.BROKEN[name])
  found = run(apply, digits)
  assert checks.worst(found) == 'red'
  assert REASONS[name] <= named(found), checks.as_text(found)
  # For this reason and no other: what is not wrong with it is not red.
  fine = {'clean', 'determinism', 'box', 'epsilon_zero', 'precision'}
  fine |= set().union(*REASONS.values()) - REASONS[name]
  fine -= {'scale', 'square'}  # what these find may follow from any of them
  assert not named(found) & fine, checks.as_text(found)


def test_noise_in_the_input(nets, digits):
  found = run(broken.noisy(nets['undefended']), digits)
  assert {'determinism', 'batches', 'rescoring'} <= named(found)
  assert not named(found) & {'clean', 'box', 'logits', 'gradients'}


# Single checks, by hand.


def grey(levels, batch_size=4) -> subject.Subject:
  """Flat images; the model says 1 when the mean is above 1/2."""
  levels = np.asarray(levels, np.float32)
  return subject.Subject(
    apply=jax.tree_util.Partial(brightness),
    image=np.tile(levels[:, None, None, None], (1, 4, 4, 1)),
    label=(levels > 0.5).astype(np.int32),
    place=np.arange(len(levels), dtype=np.int32),
    batch_size=batch_size,
  )


def brightness(image):
  mean = jnp.mean(image, axis=(1, 2, 3))
  return jnp.stack([0.5 - mean, mean - 0.5], axis=1) * 9


def settings(**changes):
  both = dict(norm='linf', epsilon=0.1, steps=4, max_steps=8, seed=0)
  return {**both, **changes}


def test_record_of_one_step_by_hand():
  seen = programs.record(
      grey([0.45, 0.3, 0.9]), **settings(steps=1, step_size=0.1, random=False)
  )  # fmt: skip
  assert seen.correct.all()
  # Logits are 9 (m - 1/2) and its negative, the margin 18 times the way.
  ways = np.array([[-0.05, 0.05], [-0.2, -0.1], [-0.4, -0.3]])
  np.testing.assert_allclose(seen.margin[:, :2], 18 * ways, rtol=1e-4)
  np.testing.assert_allclose(
    seen.loss[:, :2], np.log1p(np.exp(seen.margin[:, :2])), rtol=1e-4
  )
  assert np.all(seen.margin[:, 2:] == -np.inf)
  np.testing.assert_array_equal(trials.survives(seen), [0, 1, 1])
  np.testing.assert_allclose(seen.adv[0], 0.55, rtol=1e-5)
  assert not seen.flat.any()


def test_a_gradient_that_is_not_finite_is_none():
  """That of one black pixel; the second image has none."""
  model = grey([0.2, 0.3])
  model.image[0, 0, 0] = 0

  def root(image):
    return brightness(image) + jnp.sqrt(image[:, 0, 0])

  found = model._replace(apply=jax.tree_util.Partial(root))
  flat = programs.record(found, **settings(step_size=0.1, random=False)).flat
  np.testing.assert_array_equal(flat[:, 0], [True, False])


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_pgd_and_noise_stay_in_the_ball_and_reach_its_edge(norm):
  model = grey([0.02, 0.3, 0.5, 0.98])
  epsilon = {'linf': 0.1, 'l2': 0.4, 'l1': 1.6}[norm]
  changes = dict(norm=norm, epsilon=epsilon, steps=8)
  adv = programs.record(model, **settings(**changes)).adv
  attacked = {'pgd': subject.Attacked(np.ones(4, bool), adv)}
  found = basic.box((model, attacked), norm=norm, epsilon=epsilon)
  assert found.level == 'green', found
  # All norms allow the mean to move by 0.1, and PGD finds it.
  np.testing.assert_allclose(
    np.abs(adv - model.image).mean(axis=(1, 2, 3)), 0.1, atol=0.02
  )


def test_radius_and_steps_do_not_compile_again():
  model = grey([0.2, 0.8])
  traced = 0

  def counting(image):
    nonlocal traced
    traced += 1
    return brightness(image)

  model = model._replace(apply=jax.tree_util.Partial(counting))
  programs.record(model, **settings())
  before = traced
  programs.record(model, **settings(epsilon=0.3, steps=7, random=False, seed=1))
  assert traced == before > 0


def test_noise_breaks_only_what_is_near():
  model = grey([0.499, 0.2, 0.501, 0.9])
  correct = programs.survives_noise(model, 'linf', 0.1, 200, 0)
  np.testing.assert_array_equal(correct, [0, 1, 0, 1])


def test_batches_of_one_size():
  sizes = []

  def twice(x):
    sizes.append(len(x))
    return {'a': 2 * x}

  x = np.arange(7.0)
  np.testing.assert_array_equal(subject.in_batches(twice, 3, x)['a'], 2 * x)
  assert sizes == [3, 3, 3]


def wandering(margins) -> programs.Record:
  """A record with given margins [N, S + 1] and unit losses."""
  margins = np.asarray(margins, np.float32)
  return programs.Record(
    correct=np.ones(len(margins), bool),
    margin=margins,
    loss=np.ones_like(margins),
    flat=np.zeros(margins.shape, bool),
    adv=np.zeros((len(margins), 1, 1, 1), np.float32),
  )


def tried(path, one_step=None, restarts=(), curve=((1,), (0,))):
  first = wandering(path)
  one_step = first if one_step is None else wandering(one_step)
  return trials.Trials(
    one_step, [first, *restarts], [0.0, 1.0], np.array(curve, bool)
  )


def falls_at(steps, total=8):
  """Margins of images that fall at given steps and stay so."""
  path = np.arange(total + 1)
  return np.where(path >= np.asarray(steps)[:, None], 1.0, -1.0)


FOUR = checks.Effort(num_steps=4)
NEVER = 99
ALL = np.ones(10, bool)


def test_one_step_is_not_stronger_than_many():
  robust = falls_at([NEVER] * 10)
  some = falls_at([1] * 3 + [NEVER] * 7)
  good = attacking.one_step(tried(some, one_step=robust), FOUR)
  assert good.level == 'green'
  assert good.value == {'fgsm': 100.0, 'pgd-4': 70.0}
  assert attacking.one_step(tried(robust, some), FOUR).level == 'red'
  one = falls_at([1] + [NEVER] * 9)
  assert attacking.one_step(tried(robust, one), FOUR).level == 'amber'


def test_convergence_counts_images_that_fall_late():
  early = falls_at([3] * 5 + [NEVER] * 5)
  assert attacking.convergence(tried(early), ALL, FOUR).level == 'green'
  late = falls_at([3] * 3 + [7, 8] + [NEVER] * 5)
  found = attacking.convergence(tried(late), ALL, FOUR)
  assert found.level == 'red'
  assert found.value == {'4 steps': 70.0, '8 steps': 50.0}
  # Nothing is gained where another attack has been.
  others = np.arange(10) < 3
  assert attacking.convergence(tried(late), others, FOUR).level == 'green'


def test_restarts_count_images_that_only_later_ones_break():
  first = falls_at([3] * 5 + [NEVER] * 5)
  same = attacking.restarts(
    tried(first, restarts=[wandering(first)]), ALL, FOUR
  )
  assert same.level == 'green'
  other = wandering(first[::-1])
  found = attacking.restarts(tried(first, restarts=[other]), ALL, FOUR)
  assert found.level == 'red' and found.value['2 restarts'] == 0


@pytest.mark.parametrize(
  'curve, level',
  [
    ([10, 6, 3, 0], 'green'),
    ([10, 6, 7, 0], 'amber'),
    ([10, 3, 6, 0], 'red'),
    ([10, 9, 8, 7], 'red'),
    ([10, 6, 5, 4], 'amber'),  # two classes: half is chance
  ],
)
def test_epsilon_curve(curve, level):
  flags = np.arange(10) < np.array(curve)[:, None]
  curve = tried([[0.0]])._replace(radii=[0, 1, 2, 4], curve=flags)
  assert attacking.epsilon_curve(grey([0.2, 0.8]), curve).level == level


def test_gradients_along_the_path():
  path = falls_at([3] * 5 + [NEVER] * 95)
  good = tried(path)
  assert attacking.gradients(good).level == 'green'
  flat = good.restarts[0].flat.copy()
  flat[50:53, 5] = True
  found = attacking.gradients(
    good._replace(restarts=[good.restarts[0]._replace(flat=flat)])
  )
  assert found.level == 'red'
  assert found.value['zero gradient on the path'] == 3


@pytest.mark.parametrize(
  'rows, step, level, value',
  [
    # Images 0 to 4 fall at step 3, the other 95 never do.
    ([], 0, 'green', {}),
    ([50], 0, 'amber', {'zero loss at the start': 1}),
    ([50, 51], 0, 'red', {'zero loss at the start': 2}),
    ([0], 0, 'green', {'zero loss, broken all the same': 1}),
    ([0, 1], 0, 'amber', {'zero loss, broken all the same': 2}),
    ([50, 51], 4, 'green', {}),  # met on the way, and left again
    ([50], 8, 'amber', {'zero loss at the end': 1}),
    ([50, 51], 8, 'red', {'zero loss at the end': 2}),
    ([0, 1], 8, 'green', {}),
  ],
)
def test_losses_of_zero(rows, step, level, value):
  good = tried(falls_at([3] * 5 + [NEVER] * 95))
  path = good.restarts[0]
  zero = path._replace(loss=path.loss.copy())
  zero.loss[rows, step] = 0
  starts = [good._replace(restarts=[zero])]
  if step == 0:  # a start is the image itself, or a random point near it
    starts.append(good._replace(one_step=zero))
  for each in starts:
    found = attacking.gradients(each)
    assert found.level == level
    assert {k: v for k, v in found.value.items() if v} == value


@pytest.mark.parametrize('count', [10, 64, 100, 1000])
def test_what_chance_explains(count):
  """The binomial tail, summed over all its terms."""
  likely = [
    math.comb(count, k) * 0.005**k * 0.995 ** (count - k)
    for k in range(count + 1)
  ]
  allowed = round(report.by_chance(count) * count / 100)
  assert sum(likely[allowed + 1 :]) <= 0.01 < sum(likely[allowed:])
  # So many images that fall late are amber, one more is red.
  for more, level in ((0, 'amber'), (1, 'red')):
    late = falls_at([7] * (allowed + more) + [NEVER] * (count - allowed - more))
    everyone = np.ones(count, bool)
    found = attacking.convergence(tried(late), everyone, FOUR)
    assert found.level == level
    rest = attacking.restarts(
      tried(falls_at([NEVER] * count), restarts=[wandering(late - 0.5)]),
      everyone,
      FOUR._replace(num_steps=8),
    )
    assert rest.level == level
    # Of an evaluation that missed as many.
    ours = np.arange(count) >= allowed + more
    assert attacking.reported(everyone, ours).level == level


def test_what_chance_explains_of_many_images():
  """It comes down to the half point, and ends."""
  assert 0.5 < report.by_chance(50_000) < 0.6
  assert 0.5 < report.by_chance(10_000_000) < 0.6
  late = falls_at([7] * 4 + [NEVER] * 996)
  everyone = np.ones(1000, bool)
  assert attacking.convergence(tried(late), everyone, FOUR).level == 'green'


def test_targets():
  flags = np.arange(100)
  robust = falls_at([NEVER] * 100)
  for aimed, level in ((50, 'green'), (45, 'green'), (44, 'amber')):
    attacked = {
      'suite.apgd_ce': subject.Attacked(flags < 50, None),
      'apgd_t-9': subject.Attacked(flags < aimed, None),
      'square': subject.Attacked(flags < 0, None),  # has no gradients
    }
    found = attacking.targets(tried(robust), attacked)
    assert found.level == level
    assert found.value == {
      'without targets': 50, 'with targets': aimed, 'both': aimed
    }  # fmt: skip
  # And the other way round: PGD, without a target, breaks half.
  half = falls_at([3] * 50 + [NEVER] * 50)
  found = attacking.targets(tried(half), attacked | {
    'suite.apgd_ce': subject.Attacked(flags >= 0, None),
    'apgd_t-9': subject.Attacked(flags >= 10, None),
  })  # fmt: skip
  assert found.level == 'amber'
  assert found.value == {
    'without targets': 50, 'with targets': 90, 'both': 50
  }  # fmt: skip


def test_scale():
  """Red where the logits may be why; a small gap leaves it a warning."""
  flags = np.arange(100)
  ce = subject.Attacked(flags < 90, None)
  quiet = grey(np.full(100, 0.9), batch_size=100)  # a gap of 7.2
  loud = quiet._replace(
    apply=jax.tree_util.Partial(lambda x: 10 * brightness(x))
  )
  for model, gap, rest in ((quiet, 'green', 'amber'), (loud, 'amber', 'red')):
    for aimed, expected in ((88, 'green'), (86, 'amber'), (84, rest)):
      attacked = {
        'apgd_ce': ce,
        'apgd_t': subject.Attacked(flags < aimed, None),
      }
      found = attacking.scale(model, attacked)
      assert found.level == max(expected, gap, key=checks.LEVELS.index), aimed


def test_square_and_noise_are_compared_per_image():
  by_gradients = np.arange(100) < 50
  # As many broken, but others.
  stronger = subject.Attacked(np.arange(100) >= 2, None)
  found = attacking.square({'square': stronger}, by_gradients)
  assert found.level == 'red' and found.value['broken by it alone'] == 2
  weaker = subject.Attacked(np.arange(100) < 80, None)
  assert attacking.square({'square': weaker}, by_gradients).level == 'green'
  one = subject.Attacked(np.arange(100) >= 1, None)
  assert attacking.square({'square': one}, by_gradients).level == 'amber'


def test_an_evaluation_that_found_too_little():
  ours = np.arange(100) < 50
  for count, level in ((50, 'green'), (52, 'amber'), (60, 'red')):
    assert attacking.reported(np.arange(100) < count, ours).level == level


@pytest.mark.parametrize(
  'change, epsilon, key',
  [
    (0.1001, 0.1, 'beyond epsilon'),
    (0.11, 0.2, 'beyond [0, 1]'),
    (np.nan, 0.1, 'not finite'),
  ],
)
def test_box_in_float64(change, epsilon, key):
  model = grey([0.2, 0.9])
  alive = np.ones(2, bool)
  good = subject.Attacked(alive, model.image - np.float32(0.1))
  bad = subject.Attacked(alive, model.image + np.float32(change))
  all_good = model, {'good': good}
  assert basic.box(all_good, norm='linf', epsilon=0.1).level == 'green'
  found = basic.box(all_good, (model, {'b': bad}), norm='linf', epsilon=epsilon)
  assert found.level == 'red' and found.value[key] > 0


def test_rescoring_finds_other_flags_but_forgives_ties():
  model = grey([0.2, 0.3, 0.8])
  far = model.image
  near = np.concatenate([np.full_like(far[:1], 0.49999), far[1:]])
  gone = np.concatenate([np.full_like(far[:1], np.nan), far[1:]])
  for adv, first_correct, level in (
    (far, True, 'green'),
    (far, False, 'red'),
    (near, False, 'amber'),
    (gone, False, 'green'),  # not attacked, as it had fallen
  ):
    each = subject.Attacked(np.array([first_correct, True, True]), adv)
    attacked = {'a': each, 'b': each._replace(adv=None)}
    found = basic.rescoring((model, attacked))
    assert found.level == level, found
    assert found.value['images'] == (2 if adv is gone else 3)
  both = basic.rescoring((model, attacked), (model, {'a': each}))
  assert both.value['images'] == 4


def test_precision_is_tried():
  def careless(image):
    exact = jax.config.jax_default_matmul_precision == 'highest'
    return brightness(image if exact else image - 0.01)

  model = grey([0.6, 0.7, 0.2, 0.3])
  model = model._replace(apply=jax.tree_util.Partial(careless))
  correct = np.ones(4, bool)
  far = {'a': subject.Attacked(correct, model.image)}
  assert basic.precision(model, far).level == 'green'
  near = np.where(model.image > 0.5, 0.505, model.image).astype(np.float32)
  found = basic.precision(model, {'a': subject.Attacked(correct, near)})
  assert found.level == 'red' and found.value['highest'] == 100
  assert found.value['default'] == 50


def test_logits_that_are_not_finite():
  def broken_model(image):
    return brightness(image).at[0, 0].set(jnp.nan)

  model = grey([0.2, 0.8])._replace(apply=jax.tree_util.Partial(broken_model))
  assert basic.are_logits(model).level == 'red'
  assert basic.determinism(model).level == 'red', 'nan must not be green'
  assert basic.are_logits(grey([0.2, 0.8])).level == 'green'


def test_guessing_is_red():
  model = grey([0.2, 0.3, 0.8, 0.9])
  assert basic.clean(model).level == 'green'
  assert basic.clean(model._replace(label=1 - model.label)).level == 'red'


# The report as a whole.


def test_what_was_found_is_used(nets, digits):
  apply = broken.apply(nets['trained under attack'])
  count = len(digits.test.label)
  robust = np.ones(count, bool)
  flags = {
    'clean': robust, 'robust': ~robust, 'apgd_ce-100': robust,
    'apgd_t': robust, 'square-5000': ~robust,
  }  # fmt: skip
  image = digits.test.image / np.float32(255)
  shown = []
  found = run(
      apply, digits, found=Result(flags, {}, {'apgd_t': image + 0.2}),
      show=shown.append,
  )  # fmt: skip
  by_name = {c.name: c for c in found}
  assert by_name['scale'].value['apgd_ce'] == 100
  assert by_name['square'].value['square'] == 0
  assert by_name['reported'].value['evaluation'] == 0
  assert {'square', 'box'} <= named(found)
  assert not set(shown) & programs.ATTACKS.keys(), 'an attack ran again'
  # All that were found are scored again, and the 64 of PGD.
  assert by_name['rescoring'].value['images'] == count + EFFORT.num_images


def test_one_of_all_images_was_exchanged(nets, digits):
  """It is found, though the checks draw few."""
  apply = broken.apply(nets['undefended'])
  image, label = digits.test.image / np.float32(255), digits.test.label
  margin = subject.margins(np.asarray(apply(image)), label)
  flags = dict.fromkeys(['clean', 'mine', *programs.ATTACKS], margin < 0)
  adv = image.copy()
  effort = EFFORT._replace(num_images=8, num_steps=2, num_draws=2)
  for differ in (0, 1):
    found = run(
      apply, digits, effort=effort, found=Result(flags, {}, {'mine': adv})
    )
    value = {c.name: c for c in found}['rescoring'].value
    assert value['flags differ'] == differ
    # The surest image gets the surest of another class.
    first = np.argmin(margin)
    others = np.where(label == label[first], 0, margin)
    adv[first] = image[np.argmin(others)]


def test_the_same_report_for_uint8_and_float_and_twice(nets, digits):
  apply = broken.apply(nets['undefended'])
  first = run(apply, digits)
  image = (digits.test.image / 255).astype(np.float32)
  again = checks.run(
      apply, image, digits.test.label, budget=BUDGET, effort=EFFORT,
      batch_size=32,
  )  # fmt: skip
  assert first == again


def test_a_plain_function_will_do(monkeypatch):
  """And each check looks at the limits that the table says."""
  seen, looked = {}, []

  def grade(limit, *numbers):
    looked.append(limit)
    return report.grade(limit, *numbers)

  def check(name, *rest):
    seen[name] = set(looked)
    looked.clear()
    return report.check(name, *rest)

  for module in (basic, attacking):
    monkeypatch.setattr(module, 'grade', grade)
    monkeypatch.setattr(module, 'check', check)
  model = grey(np.linspace(0, 1, 8))
  flags = dict.fromkeys(programs.ATTACKS, np.ones(8, bool))
  found = checks.run(
    lambda image: brightness(image),
    model.image,
    model.label,
    budget=BUDGET,
    found=Result(flags, {}, {}),
    effort=EFFORT._replace(num_steps=5, num_draws=10),
  )
  assert [c.name for c in found] == list(report.MEANINGS)
  assert seen == {n: set(m.limits) for n, m in report.MEANINGS.items()}
  assert set().union(*seen.values()) == report.LIMITS.keys()


def test_report_as_text_and_json():
  found = [
    report.check('noise', {'gain': 1 / 3}, 'green', 'amber'),
    report.check('box', {'not finite': np.inf}, 'green'),
  ]
  assert checks.worst(found) == 'amber' and checks.worst([]) == 'green'
  rows = checks.as_text(found)
  assert rows[0][:3] == ['noise', 'amber', 'gain 0.333']
  stored = json.loads(json.dumps(checks.as_json(found), allow_nan=False))
  assert stored['level'] == 'amber'
  assert stored['checks'][1]['value'] == {'not finite': 'inf'}


def test_one_image_is_never_red_and_nan_always():
  assert report.grade('square gains', 1.0, forgiven=1.0) == 'amber'
  assert report.grade('square gains', 2.0, forgiven=1.0) == 'red'
  # 30 less 29 of 100 images, which float64 has as a little more than 1.
  assert report.grade('square gains', 100 * 0.3 - 100 * 0.29, 1.0) == 'amber'
  assert report.grade('square gains', 0.0, forgiven=1.0) == 'green'
  assert report.grade('square gains', float('nan'), forgiven=1.0) == 'red'


@pytest.mark.parametrize(
  'changes, word',
  [
    (dict(image=np.zeros((4, 4, 4))), 'shape'),
    (dict(image=np.full((4, 4, 4, 1), 255.0)), '255'),
    (dict(label=np.zeros(3, int)), 'label'),
    (dict(label=np.full(4, 7)), 'classes'),
    (dict(apply=lambda x: x), 'logits'),
    (dict(budget=BUDGET._replace(norm='l0')), 'l0'),
    (dict(budget=BUDGET._replace(epsilon=0.0)), 'epsilon'),
    (dict(found=Result({'a': np.ones(3, bool)}, {}, {})), "'a'"),
    (
      dict(
        found=Result({'b': np.ones(4, bool)}, {}, {'b': np.ones((4, 4, 4, 3))})
      ),
      "'b'",
    ),
  ],
)
def test_wrong_input_is_refused(changes, word):
  good = dict(
      apply=brightness, image=np.zeros((4, 4, 4, 1)), label=np.zeros(4, int),
      budget=BUDGET,
  )  # fmt: skip
  with pytest.raises(UserError, match=word):
    checks.run(**{**good, **changes})
