"""The examples of the documentation run as they stand."""

from functools import partial
import itertools
from pathlib import Path
import re

import jax
from jax.tree_util import Partial
import numpy as np
import pytest

from jax_robust_kd.attacks import Budget, autoattack, batching
from jax_robust_kd.attacks.engine import Images, run_jobs
from jax_robust_kd.attacks.packing import Victim
from jax_robust_kd.attacks.suites import plan
from jax_robust_kd.checks import CHECKS, as_table
from jax_robust_kd.interop import functions, zoo

DOCS = Path(__file__).parent.parent / 'docs'
NUMBERS = {17: 'seventeen', 18: 'eighteen', 19: 'nineteen', 20: 'twenty'}


def blocks(path: Path) -> list[str]:
  return re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)


def test_the_first_example_is_short_and_runs():
  """Of all of AutoAttack, in its own length, on images that fall at once."""
  code = blocks(DOCS / 'attacks.md')[0]
  lines = [line for line in code.splitlines() if line]
  assert len(lines) <= 10
  namespace: dict = {}
  exec(code, namespace)
  flags = namespace['found'].correct
  assert flags['clean'].all()  # the labels are the network's own
  assert flags['autoattack'].shape == (32,)
  assert flags['robust'].sum() < 32


def test_a_model_that_is_a_tree_and_is_called():
  """The second example, with what the first one has defined."""
  first, second = blocks(DOCS / 'attacks.md')[:2]
  namespace: dict = {}
  exec(first.split('found =')[0], namespace)
  exec(second, namespace)
  model, image = namespace['model'], namespace['image']
  assert len(jax.tree.leaves(model)) == 2
  w1, w2 = np.asarray(model.w1), np.asarray(model.w2)
  found, label = namespace['found'], namespace['label']
  assert {'clean', 'pgd-10x2', 'apgd_ce-20', 'square-200', 'robust'} == set(
    found.correct
  )
  # Its margins, by hand.
  adv = found.adv['apgd_ce-20'].astype(np.float64)
  logits = np.tanh(adv.reshape(32, -1) @ w1) @ w2
  wrong = np.where(np.arange(10) == label[:, None], -np.inf, logits).max(1)
  margin = wrong - logits[np.arange(32), label]
  np.testing.assert_allclose(
    found.margin['apgd_ce-20'], margin, rtol=1e-3, atol=1e-3
  )
  length = np.linalg.norm((adv - image).reshape(32, -1), axis=1)
  assert 0.05 < length.max() < 0.1001


@pytest.mark.slow
def test_the_page_on_attacks():
  namespace: dict = {}
  code = blocks(DOCS / 'attacks.md')
  assert len(code) == 5
  for block in code:
    exec(block, namespace)
  assert namespace['adv'].shape == namespace['image'].shape
  names = ('keys', 'apply', 'image', 'label', 'budget')
  adv = namespace['strong']()(*(namespace[name] for name in names))
  assert 0 < np.abs(adv - namespace['image']).max() <= 8 / 255 + 1e-6
  assert namespace['found'].correct['robust'].shape == (32,)
  assert {check.level for check in namespace['report']} <= {
    'green', 'amber', 'red',
  }  # fmt: skip


def test_the_table_of_checks_is_that_of_the_code():
  page = (DOCS / 'attacks.md').read_text()
  assert as_table(CHECKS) in page, as_table(CHECKS)
  assert f'{NUMBERS[len(CHECKS)]} checks' in (
    DOCS.parent / 'README.md'
  ).read_text().replace('\n', ' ')


def linear(weight, x):
  return x.reshape(len(x), -1) @ weight


SUITE = ('fgsm', 'pgd-3x2', 'apgd_ce-4', 'apgd_dlr-4', 'apgd_t-4', 'fab-2',
         'fab_t-2', 'square-8')  # fmt: skip


def test_how_many_programs_the_page_says_are_compiled(monkeypatch):
  """1 for score, gradient and each plain attack, 2 for all others."""
  compiled = []
  original = batching._compile

  def compile_and_count(function: partial, *args):
    compiled.append(function.func.__name__)
    return original(function, *args)

  monkeypatch.setattr(batching, '_compile', compile_and_count)
  rng = np.random.default_rng(0)
  image = rng.random((20, 4, 4, 1), np.float32)  # 16 and 4
  weight = rng.normal(size=(16, 10)).astype(np.float32)
  label = (image.reshape(20, -1) @ weight).argmax(1).astype(np.int32)
  # A function of its own: what others have compiled is not found again.
  network = Partial(lambda weight, x: linear(weight, x), weight)
  run_jobs(
    plan(SUITE, Budget('linf', 1e-4, 1e-4)),  # nobody falls
    Victim(network, network),
    Images(lambda index: image[index], label),
    seed=0,
    runner=batching.Runner(16),
  )
  counts = {name: compiled.count(name) for name in set(compiled)}
  assert counts == {
    '_score': 1,
    '_gradient_is_finite': 1,
    '_whole': 2,
    '_start': 6,
    '_advance': 6,
  }


def test_flags_and_margins_mean_what_the_page_says():
  """NaN is 'not attacked', and what is NaN is False for another reason."""
  rng = np.random.default_rng(1)
  image = rng.random((24, 8, 8, 1), np.float32)
  weight = rng.normal(size=(64, 10)).astype(np.float32)
  label = (image.reshape(24, -1) @ weight).argmax(1).astype(np.int32)
  label[:3] = (label[:3] + 1) % 10
  found = autoattack(
    Partial(linear, weight), image, label, epsilon=0.02,
    suite=('pgd-5', 'autoattack'), show=lambda text: None,
  )  # fmt: skip
  clean = found.correct['clean']
  np.testing.assert_array_equal(clean, np.arange(24) >= 3)
  order = [f'autoattack.{n}' for n in ('apgd_ce', 'apgd_t', 'fab_t', 'square')]
  before = {'pgd-5': clean, order[0]: clean}
  before |= {b: found.correct[a] for a, b in itertools.pairwise(order)}
  assert found.margin.keys() == {'clean', *before}
  assert found.adv.keys() == before.keys()
  for column, asked in before.items():
    margin = found.margin[column]
    np.testing.assert_array_equal(~np.isnan(margin), asked)
    np.testing.assert_array_equal(found.correct[column], asked & (margin < 0))
    there = ~np.isnan(found.adv[column]).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(there, asked)
  np.testing.assert_array_equal(
    found.correct['autoattack'], found.correct['autoattack.square']
  )
  np.testing.assert_array_equal(
    found.correct['robust'],
    found.correct['pgd-5'] & found.correct['autoattack'],
  )


def test_the_function_of_teachers_is_one_of_flax_nnx():
  block = blocks(DOCS / 'teachers.md')[0]
  namespace: dict = {}
  exec(block, namespace)
  _, variables, classes = functions.wrap('t', namespace['teacher'], (8, 8, 3))
  assert classes == 10 and variables['params']


def test_the_list_of_teachers_is_that_of_the_package():
  page = (DOCS / 'teachers.md').read_text()
  rows = re.findall(
    r'^\| `(.+)` \| `(.+)` \| (.+) \| (.+) \| (.+) \|', page, re.M
  )
  assert rows == [
    (
      k.name.rpartition('/')[2], k.arch, f'{k.clean:.2f}',
      f'{k.autoattack:.2f}', k.epsilon,
    )
    for k in zoo.known().values()
  ]  # fmt: skip
