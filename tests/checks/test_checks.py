"""The report must be red on broken defences, and on no honest network."""

from helpers import broken_defences as broken
from helpers.evidence import brightness, grey
from jax.tree_util import Partial
import numpy as np
import pytest

from jax_robust_kd import checks
from jax_robust_kd.attacks import Budget, Result
from jax_robust_kd.checks.model import margins
from jax_robust_kd.checks.pgd import OWN_ATTACKS
from jax_robust_kd.core import Progress, UserError

BUDGET = Budget('linf', broken.EPSILON, 0.025, num_targets=3)
OPTIONS = checks.Options(
    num_images=64, num_steps=20, num_restarts=2, num_queries=300,
    num_draws=100, batch_size=32,
)  # fmt: skip


@pytest.fixture(scope='session')
def nets(digits):
  """An undefended network and one trained on attacked images."""
  return {
    'undefended': broken.train(digits.train, 0.0),
    'trained under attack': broken.train(digits.train, broken.EPSILON),
  }


def run(apply, digits, budget=BUDGET, result=None, options=OPTIONS):
  image, label = digits.test
  return checks.run(apply, image, label, budget, result, options)


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
    apply,
    digits,
    result=Result(flags, {}, {'apgd_t': image + 0.2}),
    options=OPTIONS._replace(progress=Progress(shown.append)),
  )
  by_name = {c.name: c for c in found}
  assert by_name['scale'].value['apgd_ce'] == 100
  assert by_name['square'].value['square'] == 0
  assert by_name['reported'].value['evaluation'] == 0
  assert {'square', 'box'} <= named(found)
  assert shown and not set(shown) & OWN_ATTACKS.keys(), 'an attack ran again'
  # All that were found are scored again, and the 64 of PGD.
  assert by_name['rescoring'].value['images'] == count + OPTIONS.num_images


def test_one_of_all_images_was_exchanged(nets, digits):
  """It is found, though the checks draw few."""
  apply = broken.apply(nets['undefended'])
  image, label = digits.test.image / np.float32(255), digits.test.label
  margin = margins(np.asarray(apply(image)), label)
  flags = dict.fromkeys(['clean', 'mine', *OWN_ATTACKS], margin < 0)
  adv = image.copy()
  options = OPTIONS._replace(num_images=8, num_steps=2, num_draws=2)
  for differ in (0, 1):
    result = Result(flags, {}, {'mine': adv})
    found = run(apply, digits, result=result, options=options)
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
  again = checks.run(apply, image, digits.test.label, BUDGET, options=OPTIONS)
  assert first == again


class Loaded:
  """A model of the kind that `jax_robust_kd.load` returns."""

  def __call__(self, image):
    raise AssertionError('its Partial is to be called')

  def as_partial(self):
    return Partial(brightness)


def test_functions_partials_and_loaded_models_are_checked_alike():
  model = grey(np.linspace(0, 1, 8))
  result = Result(dict.fromkeys(OWN_ATTACKS, np.ones(8, bool)), {}, {})
  options = OPTIONS._replace(num_steps=5, num_draws=10)
  reports = [
    checks.run(each, model.image, model.label, BUDGET, result, options)
    for each in (lambda image: brightness(image), Partial(brightness), Loaded())
  ]
  names = [check.name for check in checks.CHECKS]
  assert [verdict.name for verdict in reports[0]] == names
  assert reports[0] == reports[1] == reports[2]
  alone = checks.run(
    brightness, model.image, model.label, BUDGET, options=options
  )
  assert [verdict.name for verdict in alone] == names[:-1]


@pytest.mark.parametrize(
  'changes, word',
  [
    (dict(images=np.zeros((4, 4, 4))), 'shape'),
    (dict(images=np.full((4, 4, 4, 1), 255.0)), '255'),
    (dict(labels=np.zeros(3, int)), 'label'),
    (dict(labels=np.full(4, 7)), 'classes'),
    (dict(model=lambda x: x), 'logits'),
    (dict(budget=BUDGET._replace(norm='l0')), 'l0'),
    (dict(budget=BUDGET._replace(epsilon=0.0)), 'epsilon'),
    (dict(result=Result({'a': np.ones(3, bool)}, {}, {})), "'a'"),
    (
      dict(
        result=Result({'b': np.ones(4, bool)}, {}, {'b': np.ones((4, 4, 4, 3))})
      ),
      "'b'",
    ),
  ],
)
def test_wrong_input_is_refused(changes, word):
  good = dict(
      model=brightness, images=np.zeros((4, 4, 4, 1)),
      labels=np.zeros(4, int), budget=BUDGET,
  )  # fmt: skip
  with pytest.raises(UserError, match=word):
    checks.run(**{**good, **changes})
