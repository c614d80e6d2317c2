"""Suites on any network: equality, packing, restarts from disk, bad input."""

import functools

from flax import nnx
from helpers import golden_digits
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
import numpy as np
import pytest

from jax_robust_kd import attacks
from jax_robust_kd.attacks import Budget, batching, suites
from jax_robust_kd.attacks.autoattack import check_images
from jax_robust_kd.attacks.packing import Rows, Victim, make_attack
from jax_robust_kd.attacks.suites import num_steps, plan
from jax_robust_kd.core import Output, UserError

IMAGES = 40


@functools.cache
def digits():
  golden = golden_digits.load()
  image, label = golden['std/autoattack/x'], golden['std/autoattack/y']
  return image[:IMAGES].astype(np.float32), label[:IMAGES]


def run(apply=golden_digits.logits_fn, count=IMAGES, **more):
  image, label = digits()
  arguments = dict(epsilon=0.1, batch_size=count, show=lambda text: None)
  return attacks.autoattack(
    apply, image[:count], label[:count], **{**arguments, **more}
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'norm,key,epsilon,differing',
  [
    ('linf', 'Linf/0.1000', 0.1, 1),
    ('linf', 'Linf/0.0314', 8 / 255, 1),
    ('l2', 'L2/0.5000', 0.5, 1),
  ],
)
def test_the_standard_suite_gives_the_reference_flags(
  norm, key, epsilon, differing
):
  golden = golden_digits.load()
  found = attacks.autoattack(
    golden_digits.logits_fn,
    golden['std/autoattack/x'].astype(np.float32),
    golden['std/autoattack/y'],
    epsilon=epsilon,
    norm=norm,
    batch_size=200,
  )
  expected = golden[f'std/autoattack/{key}/robust']
  np.testing.assert_array_equal(
    found.correct['clean'], golden['std/autoattack/clean']
  )
  assert (found.correct['robust'] != expected).sum() <= differing


def test_each_attack_sees_what_those_before_it_left():
  found = run(suite=('autoattack',), count=24)
  order = [f'autoattack.{n}' for n in ('apgd_ce', 'apgd_t', 'fab_t', 'square')]
  alive = found.correct['clean']
  for column in order:
    np.testing.assert_array_equal(~np.isnan(found.margin[column]), alive)
    assert not (found.correct[column] & ~alive).any()
    alive = found.correct[column]
  np.testing.assert_array_equal(found.correct['autoattack'], alive)
  np.testing.assert_array_equal(found.correct['robust'], alive)
  assert alive.sum() < found.correct['clean'].sum()


def test_other_attacks_see_every_correct_image():
  found = run(suite=('apgd_ce-10', 'pgd-5'), count=24)
  for column in ('apgd_ce-10', 'pgd-5'):
    asked = ~np.isnan(found.margin[column])
    np.testing.assert_array_equal(asked, found.correct['clean'])
  both = found.correct['apgd_ce-10'] & found.correct['pgd-5']
  np.testing.assert_array_equal(found.correct['robust'], both)


@pytest.mark.parametrize('spec', ['apgd_t-20', 'square-100'])
def test_packing_changes_no_image(spec):
  """In one batch, in small ones, on two devices: the same points."""
  image, label = digits()
  rows = Rows(image, label.astype(np.int32), np.arange(IMAGES, dtype=np.int32))
  apply = Partial(golden_digits.logits_fn)
  job = plan((spec,), Budget('linf', 0.05, 0.01))[-1]
  results = []
  for size in (IMAGES, 7, 3):
    runner = batching.Runner(size)
    results.append(make_attack(job, 0, runner)(Victim(apply, apply), rows))
  first = results[0]
  assert 0 < (first.margin > 0).sum() < IMAGES
  for other in results[1:]:
    np.testing.assert_array_equal(first.margin > 0, other.margin > 0)
    np.testing.assert_allclose(first.margin, other.margin, atol=1e-3)


def test_few_programs_are_compiled():
  said = []
  run(suite=('apgd_t-12',), batch_size=16, count=40, show=said.append)
  compiled = [text for text in said if 'compiled' in text]
  # The score, the gradient, the attack's start and its steps: one size.
  assert len(compiled) == 4, compiled
  assert len({text.split(' for ')[1].split()[0] for text in compiled}) == 1
  assert len(set(text.split(' in ')[0] for text in compiled)) == len(compiled)


@pytest.mark.parametrize('num_devices, expected', [(1, 8), (2, 16), (4, 32)])
def test_a_device_of_a_cpu_takes_as_many_images_whatever_their_number(
  num_devices, expected, monkeypatch
):
  monkeypatch.setattr(batching.parallel, 'num_devices', lambda: num_devices)
  runner = batching.make_runner(100, 200, (32, 32, 3))
  assert runner.size == expected and runner.pool == 256
  assert runner.identity == '8 rows, pools of 256'


def test_a_result_does_not_depend_on_what_was_compiled_before():
  network = Partial(lambda x: golden_digits.logits_fn(x))  # not yet compiled
  first, again = (
    run(network, suite=('apgd_t-5',), batch_size=16, count=40) for _ in range(2)
  )
  for column, margin in first.margin.items():
    np.testing.assert_array_equal(margin, again.margin[column])


def linear(weight, x):
  return x.reshape(len(x), -1) @ weight


def two_weights():
  draw = np.random.default_rng(0).normal
  return [draw(size=(64, 10)).astype(np.float32) for _ in range(2)]


def attack_linear(apply, **more):
  """Returns what was compiled, and the margins of an attack."""
  said = []
  found = run(apply, suite=('apgd_t-5',), show=said.append, **more)
  compiled = [text for text in said if 'compiled' in text]
  margin = found.margin['apgd_t-5']
  assert np.isfinite(margin).any()  # somebody was attacked
  return compiled, margin


def test_a_second_call_compiles_nothing():
  """And each network of the same shapes has its own result."""
  first, second = two_weights()

  def network(weight, x):
    return linear(weight, x)

  assert len(attack_linear(Partial(network, first))[0]) == 4
  compiled, margin = attack_linear(Partial(network, second), seed=3)
  assert not compiled
  _, alone = attack_linear(lambda x: linear(second, x), seed=3)
  np.testing.assert_allclose(margin, alone, rtol=1e-4)
  assert attack_linear(Partial(network, first), epsilon=0.2)[0]
  other = Partial(lambda weight, x: -network(weight, x), first)
  assert attack_linear(other)[0]


def test_weights_that_a_network_closes_over_may_change():
  weights = two_weights()

  def network(x):
    return linear(weights[0], x)

  attack_linear(network)
  weights.reverse()
  _, margin = attack_linear(network)
  _, expected = attack_linear(Partial(linear, weights[0]))
  np.testing.assert_allclose(margin, expected, rtol=1e-4)


def test_two_devices_find_what_one_finds():
  from jax_robust_kd.runtime import parallel

  image, label = digits()
  rows = Rows(image, label.astype(np.int32), np.arange(IMAGES, dtype=np.int32))
  apply = Partial(golden_digits.logits_fn)
  job = plan(('apgd_ce-20',), Budget('linf', 0.05, 0.01))[-1]
  two = batching.Devices(2, parallel.pmap_rows)
  a, b = (
    make_attack(job, 0, runner)(Victim(apply, apply), rows)
    for runner in (batching.Runner(20), batching.Runner(20, two))
  )
  np.testing.assert_array_equal(a.margin > 0, b.margin > 0)


def test_weights_of_a_partial_are_arguments():
  image, label = digits()
  weight, _ = two_weights()
  found = [
    attacks.autoattack(
      apply, image, label, epsilon=0.1, suite=('apgd_ce-5',),
      show=lambda text: None,
    )
    for apply in (Partial(linear, weight), lambda x: linear(weight, x))
  ]  # fmt: skip
  np.testing.assert_array_equal(
    found[0].correct['robust'], found[1].correct['robust']
  )


def test_randomness_is_averaged():
  def noisy(image, keys):
    noise = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)
    return golden_digits.logits_fn(image + 0.05 * noise)

  found = run(noisy, suite=('autoattack_rand',), count=8)
  assert found.correct['clean'].mean() > 0.8
  assert found.correct['robust'].mean() < found.correct['clean'].mean()
  with pytest.raises(UserError, match='autoattack_rand'):
    run(noisy, suite=('autoattack_rand', 'pgd-5'))


FEW = {
  2: 'with 2 classes the difference of two logits takes the place of the DLR '
  'loss of apgd_dlr and apgd_t, and the number of targets is 1, not 9',
  3: 'with 3 classes the difference of two logits takes the place of the DLR '
  'loss of apgd_t, and the number of targets is 2, not 9',
  4: 'with 4 classes the number of targets is 3, not 9',
}


@pytest.mark.parametrize('classes', FEW)
def test_few_classes(classes):
  """Each attack by itself breaks about as many images as the first."""
  image, label = digits()
  rows = np.flatnonzero(label < classes)
  said = []

  def apply(x):
    return golden_digits.logits_fn(x)[:, :classes]

  found = attacks.autoattack(
    apply, image[rows], label[rows], epsilon=0.2, show=said.append,
    suite=('apgd_ce-20', 'apgd_dlr-20', 'apgd_t-20', 'fab_t-20'),
  )  # fmt: skip
  assert FEW[classes] in said
  assert found.correct.pop('clean').all()
  first, *others = (flags.sum() for flags in found.correct.values())
  assert first < len(rows) - 1
  assert max(others) <= first + 1, found.correct


def test_ten_classes_are_not_few():
  jobs = plan(('autoattack',), Budget('linf', 0.1, 0.03))
  said = []
  suites.check_num_classes(jobs, 10, said.append)
  suites.check_num_classes(jobs[:1], 2, said.append)
  assert not said
  suites.check_num_classes(jobs, 9, said.append)
  assert said == ['with 9 classes the number of targets is 8, not 9']


# By hand from the reference program: the driver's settings when an attack
# runs, which for FAB-T are not those it sets up at first. Attack, restarts,
# targets (None: untargeted), steps, draws.
STANDARD = [
  ('apgd_ce', 1, None, 100, 1),
  ('apgd_t', 1, 9, 100, 1),
  ('fab_t', 1, 9, 100, 1),
  ('square', 1, None, 5000, 1),
]
SPARSE = [
  ('apgd_ce', 5, None, 100, 1),
  ('apgd_t', 1, 5, 100, 1),
  ('fab_t', 1, 9, 100, 1),
  ('square', 1, None, 5000, 1),
]
PLUS = [
  ('apgd_ce', 5, None, 100, 1),
  ('apgd_dlr', 5, None, 100, 1),
  ('fab', 5, None, 100, 1),
  ('square', 1, None, 5000, 1),
  ('apgd_t', 1, 9, 100, 1),
  ('fab_t', 1, 9, 100, 1),
]
RAND = [('apgd_ce', 1, None, 100, 20), ('apgd_dlr', 1, None, 100, 20)]
# The program has no name for its single attacks; one restart is our choice.
ALONE = [
  ('apgd_ce', 1, None, 100, 1),
  ('apgd_dlr', 1, None, 100, 1),
  ('apgd_t', 1, 9, 100, 1),
  ('fab', 1, None, 100, 1),
  ('fab_t', 1, 9, 100, 1),
  ('square', 1, None, 5000, 1),
]
TABLE = [
  *[('autoattack', norm, STANDARD) for norm in ('linf', 'l2')],
  ('autoattack', 'l1', SPARSE),
  *[('autoattack_plus', norm, PLUS) for norm in ('linf', 'l2', 'l1')],
  *[('autoattack_rand', norm, RAND) for norm in ('linf', 'l2', 'l1')],
  *[('', norm, ALONE) for norm in ('linf', 'l2', 'l1')],
]


def _jobs(spec, norm):
  suite_of = (spec,) if spec else tuple(row[0] for row in ALONE)
  return plan(suite_of, Budget(norm, 0.1, 0.03))[1:]


@pytest.mark.parametrize('spec,norm,expected', TABLE)
def test_settings_of_the_reference(spec, norm, expected):
  planned = _jobs(spec, norm)
  assert [job.column.split('.')[-1] for job in planned] == [
    row[0] for row in expected
  ]
  for job, (name, restarts, targets, steps, draws) in zip(
    planned, expected, strict=True
  ):
    assert job.attack is attacks.ATTACKS[name]
    # Of 100 classes, so that there are targets enough.
    assert job.attack.num_runs(job.budget, 100) == restarts * (targets or 1)
    # In l_1 the starts of the second and third phase are counted, too.
    starts = 2 if norm == 'l1' and name.startswith('apgd') else 0
    assert job.attack.num_steps(job.budget) == steps + starts
    assert job.budget.num_eot == draws


def test_steps_that_progress_counts():
  suite_of = ('fgsm', 'pgd-20x3', 'apgd_t-7', 'square-30')
  planned = plan(suite_of, Budget('linf', 0.1, 0.03))
  steps = {job.column: num_steps(job, num_classes=4) for job in planned}
  assert steps == {
    'clean': 1,
    'fgsm': 1,
    'pgd-20x3': 60,
    'apgd_t-7': 21,
    'square-30': 30,
  }


@pytest.mark.parametrize(
  'attack,looks',
  [
    (attacks.apgd_ce, 1 + 100),
    (attacks.square, 1 + 5000),
    (attacks.pgd, 20 + 1),
  ],
  ids=['apgd_ce', 'square', 'pgd'],
)
def test_a_bare_attack_takes_its_own_number_of_steps(attack, looks):
  """Counted by the network; a number that is given counts instead."""
  weight, _ = two_weights()
  image = np.full((2, 8, 8, 1), 0.5, np.float32)
  label = np.asarray(linear(weight, image).argmax(1), np.int32)
  keys = jax.random.split(jax.random.key(0), 2)
  counted = []

  def logits_fn(x):
    jax.debug.callback(lambda: counted.append(1))
    return linear(weight, x)

  def count(**steps):
    counted.clear()
    budget = Budget('linf', 1e-4, 1e-4, **steps)
    attack(keys, logits_fn, image, label, budget).block_until_ready()
    jax.effects_barrier()
    return len(counted)

  assert count() == looks
  assert count(num_steps=7) == 7 + 1


def probabilities(x):
  return jax.nn.softmax(golden_digits.logits_fn(x))


def not_a_number(x):
  return golden_digits.logits_fn(x) * jnp.where(x.sum() > 0, jnp.nan, 1.0)


def not_a_gradient(x):
  """Finite logits, but 0 ** -0.55 in the gradient of a black pixel."""
  return golden_digits.logits_fn(jnp.where(x > 0, x**0.45, 0.0))


def one_class(x):
  return golden_digits.logits_fn(x)[:, :1]


@pytest.mark.parametrize(
  'apply,match',
  [(probabilities, 'probabilities'), (not_a_number, 'finite'),
   (not_a_gradient, 'gradient of the logits by image 0'),
   (one_class, 'at least 2 classes')],
)  # fmt: skip
def test_networks_that_cannot_be_attacked(apply, match):
  with pytest.raises(UserError, match=match) as error:
    run(apply)
  assert str(error.value).count('\n') == 0


@pytest.mark.parametrize(
  'more,match',
  [
    ({'epsilon': 0.0}, 'epsilon=0.0'),
    ({'epsilon': -1.0}, 'epsilon=-1.0'),
    ({'epsilon': 8.0}, 'epsilon=8.0 is larger .* grey levels'),
    ({'norm': 'l3'}, "norm='l3'"),
    ({'suite': ('apgd',)}, "'apgd'"),
    ({'suite': ()}, r'suite=\(\) attacks nothing'),
    ({'suite': ''}, "suite='' attacks nothing"),
    ({'norm': 'l1', 'suite': ('pgd-5',)}, 'no l1 version'),
  ],
)
def test_arguments_that_do_not_fit(more, match):
  with pytest.raises(UserError, match=match):
    run(**more)


def with_features(x):
  return golden_digits.logits_fn(x), x


def in_a_dict(x):
  return {'logits': golden_digits.logits_fn(x)}


def as_output(x):
  return Output(golden_digits.logits_fn(x), {}, {})


@pytest.mark.parametrize(
  'apply,remedy',
  [
    (with_features, 'lambda x: apply(x)[0]'),
    (in_a_dict, "lambda x: apply(x)['logits']"),
    (as_output, 'lambda x: apply(x).logits'),
  ],
)
def test_logits_alone_are_asked_for(apply, remedy):
  with pytest.raises(UserError, match='logits alone') as error:
    run(apply)
  assert str(error.value).endswith(f'such as {remedy}')


def test_channels_first_are_refused():
  image = np.zeros((2, 3, 32, 32), np.float32)
  with pytest.raises(UserError, match=r'transpose\(0, 2, 3, 1\)'):
    check_images(image, np.zeros(2, int))
  check_images(np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, int))  # tiny


class InTraining(nnx.Module):
  """BatchNorm in front of the golden network, in training mode."""

  def __init__(self):
    self.norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))

  def __call__(self, x):
    return golden_digits.logits_fn(self.norm(x))


def test_a_model_in_training_mode_is_refused():
  model = InTraining()
  with pytest.raises(UserError, match=r'call model\.eval\(\)'):
    run(model)
  model.eval()
  assert run(model, suite='fgsm', count=4).correct['robust'].shape == (4,)


def test_coarse_logits_are_said_and_decided_in_float32():
  """The margin 256 - 1.5 has 9 bits, one more than bfloat16 can hold."""
  said = []

  def coarse(x):
    logits = jnp.zeros((len(x), 10)).at[:, 0].set(256.0).at[:, 1].set(1.5)
    return logits.astype(jnp.bfloat16) + 0 * jnp.sum(x).astype(jnp.bfloat16)

  image, _ = digits()
  result = attacks.autoattack(
    coarse, image[:4], np.ones(4, int), epsilon=0.1, suite='fgsm',
    show=said.append,
  )  # fmt: skip
  assert any('bfloat16 logits' in text for text in said)
  np.testing.assert_array_equal(result.margin['clean'], 254.5)


def test_a_radius_and_a_suite_as_text():
  text = run(suite='pgd-5', epsilon='8/255', count=8)
  number = run(suite=('pgd-5',), epsilon=8 / 255, count=8)
  assert text.correct.keys() == {'clean', 'pgd-5', 'robust'}
  jax.tree.map(np.testing.assert_array_equal, text, number)
  with pytest.raises(UserError, match="epsilon='8/O55' is not a number"):
    run(epsilon='8/O55')


def test_a_model_may_say_how_it_travels():
  class Model:
    def __init__(self, weight):
      self.weight = weight

    def as_partial(self):
      return Partial(linear, self.weight)

  weight, _ = two_weights()
  first = run(Model(weight), suite='fgsm', count=8)
  jax.tree.map(
    np.testing.assert_array_equal,
    first,
    run(Partial(linear, weight), suite='fgsm', count=8),
  )


def test_square_needs_no_gradient():
  found = run(not_a_gradient, count=4, suite=('square-20',))
  assert found.correct['robust'].shape == (4,)


@pytest.mark.parametrize('name', ['pgd', 'fgsm', 'cw', 'apgd_ce', 'square'])
def test_a_bare_attack_refuses_what_does_not_fit(name):
  image, label = digits()
  keys = jax.random.split(jax.random.key(0), 2)
  attack = getattr(attacks, name)
  for pixels, norm, epsilon, match in (
    (np.uint8(255 * image), 'linf', 0.1, 'image is uint8'),
    (image, 'Linf', 0.1, "norm='Linf' is unknown"),
    (image, 'linf', 0.0, 'epsilon=0.0'),
  ):
    budget = Budget(norm, epsilon, 0.1, num_steps=2)
    with pytest.raises(UserError, match=match):
      attack(keys, golden_digits.logits_fn, pixels[:2], label[:2], budget)
  if name in ('pgd', 'fgsm', 'cw'):
    budget = Budget('l1', 0.1, 0.1, num_steps=2)
    with pytest.raises(UserError, match="norm='l1'"):
      attack(keys, golden_digits.logits_fn, image[:2], label[:2], budget)


@pytest.mark.parametrize(
  'image,label,match',
  [
    (np.full((2, 4, 4, 1), 1.5), np.zeros(2, int), r'\[1.5, 1.5\]'),
    (np.full((2, 4, 4, 1), np.nan), np.zeros(2, int), 'nan'),
    (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int), 'image / 255'),
    (np.zeros((2, 4, 4, 1)), np.zeros(3, int), 'one label for each'),
    (np.zeros((2, 4, 4)), np.zeros(2, int), r'\[N, H, W, C\]'),
    (np.zeros((2, 4, 4, 1)), np.full(2, 3.7), 'label is float64; give int'),
    (np.zeros((2, 4, 4, 1)), np.eye(2, dtype=int), 'one label for each'),
  ],
)
def test_images_that_do_not_fit(image, label, match):
  with pytest.raises(UserError, match=match):
    check_images(image, label)


def test_labels_that_do_not_fit():
  image, label = digits()
  with pytest.raises(UserError, match='classes 0 to 9'):
    attacks.autoattack(golden_digits.logits_fn, image, label + 5, epsilon=0.1)
