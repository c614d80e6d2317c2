"""Auto-PGD against AutoAttack's reference program, and what it promises."""

from functools import partial

from helpers import golden_digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks import apgd
from jax_robust_kd.attacks.apgd_schedule import schedule, windows
from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.stepwise import Problem, advance, as_plain_attack
from jax_robust_kd.core import image_keys
from jax_robust_kd.losses import margin

GOLDEN = golden_digits.load()
IMAGE = jnp.asarray(GOLDEN['x'])
LABEL = jnp.asarray(GOLDEN['y'], jnp.int32)
KEYS = image_keys(jax.random.key(0), jnp.arange(len(IMAGE)))
ATTACKS = {'ce': apgd.APGD_CE, 'dlr': apgd.APGD_DLR, 't': apgd.APGD_T}
OBJECTIVES = {'ce': apgd.CE, 'dlr': apgd.DLR, 't': apgd.DLR_TARGETED}
RADIUS = {'linf': 0.1, 'l2': 0.5, 'l1': 2.0}
FOLDER = {'linf': 'Linf', 'l2': 'L2'}
SETTINGS = [
  (norm, *run)
  for norm in FOLDER
  for run in [(n, s) for n in ('ce', 'dlr') for s in (5, 20, 100)]
  + [('t', 100)]
]


def problem_of(norm, num_steps, **changes) -> Problem:
  budget = Budget(norm, RADIUS[norm], 0.0, num_steps)
  given = Problem(
    KEYS, golden_digits.logits_fn, IMAGE, LABEL, budget, jnp.int32(0)
  )
  return given._replace(**changes)


def run(name, problem, first=None, last=None) -> apgd.State:
  """All steps, or the first `last`, from `first` or a random start."""
  attack = ATTACKS[name]
  if last is None:
    last = attack.num_steps(problem.budget)
  if first is None:
    state = attack.init(problem)
  else:
    state = apgd.start(OBJECTIVES[name], problem, first)
  return advance(attack, problem, state, 0, last)


def distance(adv, norm) -> np.ndarray:
  """Length of each difference to the image, in float64."""
  delta = np.asarray(adv, np.float64) - np.asarray(IMAGE, np.float64)
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  return np.linalg.norm(delta.reshape(len(delta), -1), order, axis=1)


@pytest.mark.parametrize('norm, name, num_steps', SETTINGS)
def test_reference_program_fools_the_same_images(norm, name, num_steps):
  first = jnp.asarray(GOLDEN[f'std/{FOLDER[norm]}/x_init'])
  problem = problem_of(norm, num_steps)
  state = jax.jit(lambda x: run(name, problem, x))(first)
  prefix = f'std/{FOLDER[norm]}/apgd-{name}'
  expected = {
    key: GOLDEN[f'{prefix}/{num_steps}/{key}']
    for key in ('acc', 'loss_best', 'x_best', 'x_best_adv')
  }
  assert 0 < expected['acc'].sum() < len(expected['acc'])
  np.testing.assert_array_equal(~state.fooled, expected['acc'])
  if name == 't':
    np.testing.assert_array_equal(state.target, GOLDEN[f'{prefix}/y_target'])
  if num_steps <= (20 if name == 'ce' else 5):  # then rounding errors grow
    # The logits of one image already differ by 3e-6 between the two programs.
    np.testing.assert_allclose(
      state.best_loss, expected['loss_best'], rtol=1e-6, atol=5e-6
    )
    np.testing.assert_allclose(state.best, expected['x_best'], atol=1e-6)
    np.testing.assert_allclose(state.adv, expected['x_best_adv'], atol=1e-6)


def test_checkpoints_of_100_steps():
  table = windows('linf', 100)
  assert np.flatnonzero(table).tolist() == [
    21, 40, 56, 69, 79, 86, 92, 98
  ]  # fmt: skip
  assert table[table > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
  assert windows('l2', 5).tolist() == [1, 1, 1, 1, 1]
  assert windows('l1', 100).nonzero()[0].tolist() == list(range(3, 100, 4))


@pytest.mark.parametrize('num_steps', [1, 2, 10, 100])
def test_l1_narrows_its_ball_twice(num_steps):
  table = schedule('l1', num_steps)
  starts = np.flatnonzero(table.begins)
  lengths = np.diff([*starts, len(table.begins)]) - 1
  part = -(-3 * num_steps // 10)
  assert lengths.tolist() == [part, part, max(num_steps - 2 * part, 0)]
  assert table.widening[starts].tolist() == [3.0, 2.0, 1.0]
  assert (table.inertia[starts[0] + 1] == 1.0) and not table.window[
    starts
  ].any()


@pytest.mark.parametrize('norm', list(RADIUS))
@pytest.mark.parametrize('name', ['ce', 't'])
def test_results_are_inside_and_fool(norm, name):
  problem = problem_of(norm, 10)
  budget = problem.budget._replace(num_restarts=2, num_targets=2)
  attack = jax.jit(
    lambda rng: as_plain_attack(ATTACKS[name])(
      rng, problem.logits_fn, IMAGE, LABEL, budget
    )
  )
  adv = attack(KEYS)
  assert distance(adv, norm).max() <= RADIUS[norm] + 1e-6
  assert float(adv.min()) >= 0 and float(adv.max()) <= 1
  wrong = margin(golden_digits.logits_fn(adv), LABEL) > 0
  clean_wrong = margin(golden_digits.logits_fn(IMAGE), LABEL) > 0
  assert float(wrong.mean()) > 0.5 > 0.1 > float(clean_wrong.mean())
  other = attack(image_keys(jax.random.key(1), jnp.arange(len(IMAGE))))
  assert float(jnp.abs(other - adv).max()) > 1e-3


@pytest.mark.parametrize('steps', [0, 3, 4, 7, 8, 12])
def test_wider_balls_of_l1_are_not_reported(steps):
  """The fourth step starts the phase of 2 epsilon, the eighth that of 1."""
  problem = problem_of('l1', 10)
  state = jax.jit(lambda: run('ce', problem, last=steps))()
  widening = 3 if steps < 4 else 2 if steps < 8 else 1
  length = distance(state.point, 'l1').max() / RADIUS['l1']
  assert widening - 1 < length <= widening + 1e-6
  assert distance(state.adv, 'l1').max() <= RADIUS['l1'] + 1e-6
  wrong = margin(golden_digits.logits_fn(state.adv), LABEL) > 0
  assert not np.any(state.fooled & ~wrong)
  assert bool(state.fooled.any()) == (steps >= 8)
  assert bool((state.adv == IMAGE).all()) == (steps < 8)


def test_l1_leaves_as_many_images_as_the_reference_program():
  """With four seeds that leaves 13 to 15 of 32, with 2 or 3 pixels changed."""
  budget = Budget('l1', 1.0, 0.0, 100)
  problem = problem_of('l1', 100, budget=budget)
  state = jax.jit(lambda: run('ce', problem))()
  assert 12 <= int((~state.fooled).sum()) <= 16
  assert distance(state.adv, 'l1').max() <= 1.0 + 1e-6
  changed = (state.adv != IMAGE).sum((1, 2, 3))
  assert 1.5 < float(changed[state.fooled].mean()) < 4


@pytest.mark.parametrize('norm', list(RADIUS))
def test_images_may_leave_and_move_between_steps(norm):
  problem = problem_of(norm, 20)
  attack, last = apgd.APGD_T, apgd.APGD_T.num_steps(problem.budget)
  go = jax.jit(lambda state, i, j: advance(attack, problem, state, i, j))
  middle = go(jax.jit(lambda: attack.init(problem))(), 0, 8)
  expected = go(middle, 8, last)
  rows = np.array([30, 2, 17, 5, 9, 21, 13, 28, 1, 1, 1, 1])
  few = problem._replace(rng=KEYS[rows], image=IMAGE[rows], label=LABEL[rows])
  state = jax.jit(lambda state: advance(attack, few, state, 8, last))(
    jax.tree.map(lambda leaf: leaf[rows], middle)
  )
  moved = jnp.abs(expected.point - middle.point)[rows].max((1, 2, 3))
  assert float(moved.min()) > 1e-3
  np.testing.assert_array_equal(state.fooled, expected.fooled[rows])
  np.testing.assert_allclose(state.adv, expected.adv[rows], atol=1e-5)


@pytest.mark.parametrize('classes', [2, 3, 4])
def test_few_classes(classes):
  logits_fn = lambda x: golden_digits.logits_fn(x)[:, :classes]  # noqa: E731
  label = jnp.argmax(logits_fn(IMAGE), axis=1).astype(jnp.int32)
  problem = problem_of('linf', 10, logits_fn=logits_fn, label=label)
  budget = problem.budget
  assert apgd.APGD_T.num_runs(budget, classes) == classes - 1
  states = {
    name: jax.jit(lambda name=name: run(name, problem, IMAGE))()
    for name in ('dlr', 't')
  }
  for state in states.values():
    assert np.isfinite(state.best_loss).all()
    wrong = margin(logits_fn(state.adv), label) > 0
    np.testing.assert_array_equal(state.fooled, wrong)
    assert float(wrong.mean()) > 0.3
  # The margin itself where the ratio does not exist.
  value = margin(logits_fn(states['dlr'].best), label)
  same = np.isclose(states['dlr'].best_loss, value, rtol=1e-5)
  assert same.all() == (classes == 2)
  if classes == 2:
    np.testing.assert_array_equal(states['t'].best, states['dlr'].best)


def test_runs_go_through_the_likeliest_targets_then_start_over():
  budget = Budget('linf', 0.1, 0.0, 1, num_restarts=2, num_targets=3)
  assert apgd.APGD_T.num_runs(budget, 10) == 6
  assert apgd.APGD_CE.num_runs(budget, 10) == 2
  order = np.argsort(-GOLDEN['std/logits'], axis=1)

  @jax.jit
  def target(number):
    problem = problem_of('linf', 1, run=number, budget=budget)
    return apgd.start(apgd.DLR_TARGETED, problem, IMAGE).target

  for number in range(6):
    np.testing.assert_array_equal(
      target(jnp.int32(number)), order[:, 1 + number % 3]
    )


def test_random_starts_lie_on_the_surface():
  for norm, radius in (('linf', 0.1), ('l2', 0.5)):
    first = apgd.random_start(problem_of(norm, 1))
    np.testing.assert_allclose(distance(first, norm), radius, rtol=1e-5)
    again = apgd.random_start(problem_of(norm, 1, rng=KEYS[::-1]))
    np.testing.assert_allclose(again - IMAGE, (first - IMAGE)[::-1], atol=1e-6)
    assert (
      np.unique(np.asarray(first[:, 0, 0, 0] - IMAGE[:, 0, 0, 0])).size > 30
    )


def noisy(image, keys):
  """Randomness of the size of the attack, as in a randomized defence."""
  noise = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)
  return golden_digits.logits_fn(image + 0.05 * noise)


def test_expectation_over_transformation():
  seen = []

  def logits_fn(image, keys):
    jax.debug.callback(lambda k: seen.append(np.asarray(k)),
                       jax.random.key_data(keys), ordered=True)  # fmt: skip
    return noisy(image, keys)

  budget = problem_of('linf', 10).budget._replace(num_eot=4)
  problem = problem_of('linf', 10, logits_fn=logits_fn, budget=budget)
  state = jax.jit(lambda: run('ce', problem, IMAGE, last=1))()
  jax.effects_barrier()
  # Every draw of the start and of the step has randomness of its own.
  assert len(seen) == 2 * 4
  assert len(np.unique(np.concatenate(seen), axis=0)) == 2 * 4 * len(IMAGE)
  # The gradient after the step is the mean over its four draws.

  def loss(x, keys):
    return apgd.CE.loss(noisy(x, keys), LABEL, LABEL).sum()

  gradients = [
    jax.grad(loss)(state.point, jax.random.wrap_key_data(keys))
    for keys in seen[-4:]
  ]
  np.testing.assert_allclose(
    state.gradient, sum(gradients) / 4, rtol=1e-4, atol=1e-6
  )
  assert float(jnp.abs(state.gradient - gradients[-1]).max()) > 1e-3


def test_eot_beats_a_noisy_network():
  budget = problem_of('linf', 10).budget._replace(num_eot=4)
  problem = problem_of('linf', 10, logits_fn=noisy, budget=budget)
  for name in ('ce', 't'):
    state = jax.jit(lambda name=name: run(name, problem))()
    fresh = image_keys(jax.random.key(9), jnp.arange(len(IMAGE)))
    attacked = margin(noisy(state.best, fresh), LABEL) > 0
    clean = margin(noisy(IMAGE, fresh), LABEL) > 0
    assert float(clean.mean()) < 0.2 < 0.6 < float(attacked.mean())


def test_one_step_looks_at_the_network_once():
  calls = []

  def logits_fn(image):
    calls.append(image.shape)
    return golden_digits.logits_fn(image)

  for norm in RADIUS:
    problem = problem_of(norm, 10, logits_fn=logits_fn)
    state = jax.eval_shape(partial(apgd.APGD_T.init, problem))
    calls.clear()
    jax.eval_shape(partial(apgd.APGD_T.step, problem), jnp.int32(3), state)
    assert len(calls) == 1


@pytest.mark.parametrize('norm', list(RADIUS))
def test_programs_do_not_grow_with_steps(norm):
  def lines(num_steps):
    problem = problem_of(norm, num_steps)
    return str(jax.make_jaxpr(lambda: run('t', problem))()).count('\n')

  assert abs(lines(10) - lines(100)) < 20  # tables are printed when short


def test_no_gradient_flows_through_the_attack():
  def total(scale):
    logits_fn = lambda x: scale * golden_digits.logits_fn(x)  # noqa: E731
    state = run('dlr', problem_of('l2', 3, logits_fn=logits_fn))
    return jnp.sum(state.adv) + jnp.sum(state.best_loss)

  assert float(jax.jit(jax.grad(total))(1.0)) == 0.0
