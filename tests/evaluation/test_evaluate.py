"""Evaluation: what counts as robust, padding, resume, the ball."""

import csv
import json
import math

from helpers.saved_runs import save_run
from helpers.steps import network
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import data, job, main, networks
from jax_robust_kd.attacks import Budget, Result
from jax_robust_kd.attacks.packing import check_inside
from jax_robust_kd.config import load_config
from jax_robust_kd.core import Output, UserError
from jax_robust_kd.evaluation import evaluate, results, store
from jax_robust_kd.evaluation.run import attack
from jax_robust_kd.evaluation.run import test_split as evaluated_split
from jax_robust_kd.evaluation.store import Folder
from jax_robust_kd.training import build

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
  return evaluate_by(brightness, split, suite, **more).correct


def evaluate_by(forward, split, suite, folder=None, identity=''):
  return evaluate.evaluate_suite(
    evaluate.make_victim(forward, {}),
    split,
    evaluate.Settings(suite, BUDGET, seed=0, batch_size=4),
    Folder(folder, identity),
  )


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
    evaluate.make_split_attack(forward, 'pgd-5', BUDGET, 0, size)(
      variables, split
    )
    for size in (4, 16)
  )
  np.testing.assert_allclose(a.adv, b.adv, atol=1e-6)
  np.testing.assert_allclose(a.margin, b.margin, atol=1e-5)


def test_kept_flags_are_used_and_only_for_the_same_weights(tmp_path):
  split = grey([0, 120, 255])
  first = run(split, ('fgsm',), folder=tmp_path, identity='a')
  path = tmp_path / 'clean-0.npz'
  with np.load(path) as file:
    identity = file['identity']
  assert str(identity) == 'a 3 rows, pools of 256'
  margin = np.full(3, 1, np.float32)  # all wrong
  np.savez(path, identity=identity, margin=margin)
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


@pytest.mark.parametrize(
  'correct,total', [(0, 10), (1, 10), (50, 100), (731, 1000), (10, 10)]
)
def test_interval_by_hand(correct, total):
  """Its ends are the shares from which the one found is 1.96 deviations off.

  Those p solve (found - p)^2 = 1.96^2 p (1 - p) / total, a quadratic in p.
  """
  found, z = correct / total, 1.96
  roots = np.roots([1 + z**2 / total, -2 * found - z**2 / total, found**2]).real
  np.testing.assert_allclose(
    evaluate.interval(correct, total), sorted(roots), atol=1e-7
  )


def test_float32_products_are_exact_enough_in_evaluation(digits):
  """The evaluation asks for the highest matmul precision."""
  forward, variables = network(0, 4)
  seen = []

  def spy(variables, image, mode):
    seen.append(jax.config.jax_default_matmul_precision)
    return forward(variables, image, mode)

  split = data.Split(digits.test.image[:4], digits.test.label[:4])
  evaluate.make_split_attack(spy, 'fgsm', BUDGET, 0, 4)(variables, split)
  assert set(seen) == {'highest'}


@pytest.mark.parametrize('kept', [0, 3])
def test_a_suite_goes_on_where_it_was_killed(kept, tmp_path, monkeypatch):
  """The same flags, margins and images as without the kill."""
  split = grey(np.linspace(0, 255, 600))

  def attack(folder):
    return evaluate_by(brightness, split, ('apgd_ce-4',), folder=folder)

  whole = attack(tmp_path / 'whole')
  assert len(list((tmp_path / 'whole').iterdir())) == 6  # 2 columns, 3 pools
  save, left = store._save, [kept]

  def killed(*args):
    if not left[0]:
      raise KeyboardInterrupt
    left[0] -= 1
    save(*args)

  monkeypatch.setattr(store, '_save', killed)
  with pytest.raises(KeyboardInterrupt):
    attack(tmp_path / 'other')
  monkeypatch.setattr(store, '_save', save)
  jax.tree.map(np.testing.assert_array_equal, whole, attack(tmp_path / 'other'))


CONFIG = 'configs/pgd_at.py:digits'


def a_config(**changes):
  """A config of digits; `eval_norm='l1'` sets eval.norm."""
  c = job.copy(load_config(CONFIG))
  for key, value in changes.items():
    group, _, name = key.partition('_')
    c[group][name] = value
  return c


def test_only_training_needs_the_attack_that_validates(digits):
  """In l_1 PGD, which validates by default, does not exist."""
  c = a_config(eval_norm='l1', eval_suite=('apgd_ce-5',))
  for mode in ('eval', 'check'):
    build.check(c, digits, mode)
  with pytest.raises(UserError, match=r"^validation\.attack: .*'pgd-10'"):
    build.check(c, digits, 'train')
  c.validation.attack = 'apgd_ce-5'
  build.check(c, digits, 'train')
  c.eval.suite = ('pgd-5',)
  with pytest.raises(UserError, match=r"^eval\.suite: .*'pgd-5'"):
    build.check(c, digits, 'eval')


def evaluate_saved(workdir, dataset, *flags):
  """Evaluates a run with random weights as the command line does."""
  save_run(workdir, dataset)
  argv = ['main', f'--config={CONFIG}', f'--workdir={workdir}', '--mode=eval']
  return main.main([*argv, '--config.eval.num_examples=64', *flags])


def test_a_run_is_evaluated_in_l1(tmp_path, digits):
  flags = ('--config.eval.norm=l1', '--config.eval.epsilon=3')
  suite = "--config.eval.suite=('apgd_ce-8','square-20')"
  assert evaluate_saved(tmp_path, digits, *flags, suite) == 0
  card = json.loads((tmp_path / 'results.json').read_text())
  assert (card['norm'], card['eps'], card['num_examples']) == ('l1', '3', 64)
  attacked = np.flatnonzero(card['images']['clean'])
  assert len(attacked)
  with np.load(tmp_path / 'attacked' / 'apgd_ce-8-0.npz') as found:
    moved = found['adv'] - evaluate.pixels(digits.test, attacked)
  length = np.abs(moved).sum((1, 2, 3))
  assert length.max() <= 3.001
  # Sparse: a ball in another norm would move every pixel.
  assert (np.abs(moved) < 1e-6).mean() > 0.3


def test_draws_of_networks_that_draw_nothing_are_refused():
  split = grey([0, 255])
  with pytest.raises(UserError, match="have none; use 'autoattack'"):
    run(split, ('autoattack_rand',))
  with pytest.raises(UserError, match="have none; use 'autoattack'"):
    evaluate.make_split_attack(brightness, 'autoattack_rand', BUDGET, 0, 4)


def test_a_network_of_one_class_is_refused():
  def one_class(variables, image, mode):
    found = brightness(variables, image, mode)
    return found._replace(logits=found.logits[:, :1])

  with pytest.raises(UserError, match='1 class; .* at least 2'):
    evaluate_by(one_class, grey([0, 1]), ('fgsm',))


def test_logits_that_are_not_finite_are_refused():
  def poisoned(variables, image, mode):
    found = brightness(variables, image, mode)
    wrong = jnp.mean(image, axis=(1, 2, 3)) > 0.9
    return found._replace(
      logits=jnp.where(wrong[:, None], jnp.nan, found.logits)
    )

  with pytest.raises(UserError, match='logits of image 2 are not finite'):
    evaluate_by(poisoned, grey([0, 120, 255, 20, 255]), ('fgsm',))


def test_a_run_with_broken_weights_is_refused(
  tmp_path, digits, monkeypatch, capsys
):
  read = networks.load_network

  def damaged(*args):
    network = read(*args)
    return network._replace(
      variables=jax.tree.map(lambda x: x * np.nan, network.variables)
    )

  monkeypatch.setattr(networks, 'load_network', damaged)
  assert evaluate_saved(tmp_path, digits) == 2
  error = capsys.readouterr().err
  assert error == (
    'error: the logits of image 0 are not finite; the network must return '
    'finite logits on all images\n'
  )


def test_attacked_in_bfloat16_and_decided_in_float32(tmp_path, digits):
  """FGSM by hand: with bfloat16's signs, and float32's margins."""
  save_run(tmp_path, digits)
  network = networks.load_network(str(tmp_path), digits)
  c = a_config(
    eval_attack_precision='bfloat16', eval_suite=('fgsm',), eval_num_examples=64
  )
  split = evaluated_split(c, digits)
  image = evaluate.pixels(split, np.arange(64))
  label = np.asarray(network.forward(network.variables, image, 'eval').logits)
  split = split._replace(label=label.argmax(1).astype(np.int32))
  found = attack(c, tmp_path, 'x', network, split)

  def margins(precision, x):
    forward = networks.in_precision(network, precision)
    logits = forward(network.variables, x, 'eval').logits.astype(jnp.float32)
    rows = np.arange(len(x))
    right = logits[rows, split.label]
    others = logits.at[rows, split.label].set(-np.inf)
    return others.max(1) - right, logits

  def by_hand(precision):
    def loss(x):
      _, logits = margins(precision, x)
      log_p = jax.nn.log_softmax(logits)
      return -log_p[np.arange(len(x)), split.label].sum()

    sign = jnp.sign(jax.jit(jax.grad(loss))(image))
    return np.clip(image + 0.125 * np.asarray(sign), 0, 1)

  adv = found.adv['fgsm']
  equal = {
    precision: np.isclose(adv, by_hand(precision), atol=1e-5).mean()
    for precision in ('bfloat16', 'float32')
  }
  assert equal['bfloat16'] > 0.99 > equal['float32']
  exact, coarse = (margins(p, adv)[0] for p in ('float32', 'bfloat16'))
  np.testing.assert_allclose(found.margin['fgsm'], exact, atol=1e-5)
  assert np.abs(coarse - exact).max() > 1e-3


def some_result():
  """Four images, two columns; the second sees what the first left."""
  clean = np.array([-2.0, -1.0, 1.5, -0.25], np.float32)
  fgsm = np.array([-1.0, 0.5, np.nan, -0.1234567], np.float32)
  later = np.array([0.25, np.nan, np.nan, -0.125], np.float32)
  flags = [
    np.array(x, bool) for x in ([1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1])
  ]
  names: list[str] = ['clean', 'autoattack.apgd_ce', 'autoattack.square']
  correct = dict(zip(names, flags, strict=True))
  correct['autoattack'] = correct['robust'] = flags[2]
  margins = dict(zip(names, (clean, fgsm, later), strict=True))
  return Result(correct, margins, {})


def evaluated(network, dataset) -> results.Evaluated:
  label = dataset.test.label[:4]
  return results.Evaluated(
    network, dataset.name, label, 'def', some_result(), {}
  )


def test_image_table_by_hand(tmp_path):
  table = results.image_table(np.array([3, 1, 4, 1]), some_result())
  assert table == {
    'id': [0, 1, 2, 3],
    'label': [3, 1, 4, 1],
    'clean': [1, 1, 0, 1],
    'clean margin': [-2.0, -1.0, 1.5, -0.25],
    'autoattack.apgd_ce': [1, 0, None, 1],
    'autoattack.apgd_ce margin': [-1.0, 0.5, None, -0.123457],
    'autoattack.square': [0, None, None, 1],
    'autoattack.square margin': [0.25, None, None, -0.125],
    'robust': [0, 0, 0, 1],
  }
  results.write_csv(tmp_path / 'images.csv', table)
  with (tmp_path / 'images.csv').open() as file:
    rows = list(csv.reader(file))
  assert rows[0] == list(table)
  assert rows[3] == ['2', '4', '0', '1.5', '', '', '', '', '0']


# The keys of a card in RobustBench's model_info, with 'external' and
# 'unreliable' of some.
ROBUSTBENCH = {
  'link', 'name', 'authors', 'additional_data', 'number_forward_passes',
  'dataset', 'venue', 'architecture', 'eps', 'clean_acc', 'reported',
  'autoattack_acc', 'external', 'footnote', 'unreliable',
}  # fmt: skip


def test_card_by_hand(digits):
  weights = {'a': np.zeros((3, 4)), 'b': {'c': np.zeros(5)}}
  network = networks.Network(
    'some_net', lambda *_: None, {'params': weights}, 10, 'abc', 7, 'pgd'
  )
  c = a_config(eval_threat='linf_8_255')
  card = results.make_card(c, evaluated(network, digits))
  assert card.keys() >= ROBUSTBENCH
  expected = {
    'name': 'pgd_at', 'dataset': 'digits', 'architecture': 'some_net',
    'parameters': 17, 'norm': 'linf', 'eps': '8/255', 'clean_acc': 75.0,
    'accuracy': {
      'autoattack.apgd_ce': 50.0, 'autoattack.square': 25.0, 'autoattack': 25.0,
    },
    'robust_accuracy': 25.0, 'autoattack_acc': 25.0, 'num_examples': 4,
    'number_forward_passes': 1, 'additional_data': False, 'footnote': None,
    'link': None, 'authors': None, 'venue': None, 'reported': None,
    'external': None, 'unreliable': None, 'checkpoint_step': 7,
    'chosen_by': 'pgd', 'sha256': 'abc', 'data_sha256': 'def', 'seed': 0,
    'corruptions': {}, 'corruptions_acc': None,
  }  # fmt: skip
  assert {key: card[key] for key in expected} == expected
  # z^2 = 3.8416: (1/4 + z^2/8 -+ z sqrt(3/64 + z^2/64)) / (1 + z^2/4)
  middle, half = 0.25 + 3.8416 / 8, 1.96 * math.sqrt(0.046875 + 3.8416 / 64)
  np.testing.assert_allclose(
    card['robust_interval_95'],
    [100 * (middle - half) / 1.9604, 100 * (middle + half) / 1.9604],
  )
  json.dumps(card)


def test_a_card_tells_of_extra_data(digits):
  network = networks.Network('n', lambda *_: None, {'params': {}}, 10)
  c = a_config()
  c.data.extra.update(file='some/where/edm_1m.npz', share=0.7, labels='teacher')
  card = results.make_card(c, evaluated(network, digits))
  assert card['additional_data'] is True
  assert card['footnote'] == (
    "70 % of each batch are images of edm_1m.npz, with the teacher's labels."
  )
