"""Square Attack: replay of the reference program's draws, and what must hold.

The draws are handed to `begin` and `update`; the same functions take the
image's own draws in an evaluation.
"""

from functools import partial
from typing import NamedTuple

from helpers import golden_digits
from helpers.attack_toy import lengths, rows_of, toy, two_classes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks import square_windows
from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.square import (
  SQUARE,
  Draw,
  Start,
  begin,
  draw_step,
  update,
)
from jax_robust_kd.attacks.stepwise import Problem, advance, as_plain_attack
from jax_robust_kd.core import image_keys
from jax_robust_kd.losses import margin

NORMS = ['linf', 'l2', 'l1']
GOLDEN = {'linf': ('Linf', 0.1), 'l2': ('L2', 0.5)}
# Orientation of the window's pattern in each step, first step in the highest
# of 150 bits: the one draw that the stored l_2 vectors lack. From the reference
# program, whose other draws with the same seed are those that are stored.
LYING = f'{0x128BC859E7310429CA95B8DE9B7E826129E837:0150b}'


class Toy(NamedTuple):
  """What the reference program does on the network of `toy`.

  In l_1 its 45th step divides rounding errors by their own norm.
  """

  norm: str
  epsilon: float
  steps: int
  queries: list
  margins: list
  squares: list  # sum of squared pixels of the best points


TOYS = [
  Toy(
    'linf', 0.045, 80, [14, 81, 4, 74, 2, 1],
    [0.30204, -1.6247, 0.03957, 0.02338, 0.27343, 0.18361],
    [194.9529, 202.157, 174.6365, 192.2676, 180.6163, 192.65],
  ),
  Toy(
    'l2', 1.2, 80, [1, 81, 8, 28, 7, 1],
    [0.30506, -0.95928, 0.32074, 0.31496, 0.2093, 0.25678],
    [194.65, 204.2096, 193.2495, 200.0463, 198.3597, 185.9433],
  ),
  Toy(
    'l1', 6.5, 40, [1, 41, 7, 13, 3, 2],
    [0.02744, -0.61013, 0.10074, 0.19608, 0.36053, 0.65381],
    [193.5537, 204.6072, 196.5871, 198.1648, 198.9904, 186.2312],
  ),
]  # fmt: skip


def golden_problem(norm, epsilon):
  vectors = golden_digits.load()
  return Problem(
      image_keys(jax.random.key(0), jnp.arange(32)), golden_digits.logits_fn,
      jnp.asarray(vectors['x']), jnp.asarray(vectors['y'], jnp.int32),
      Budget(norm, epsilon, 0.0, num_steps=150), jnp.int32(0),
  )  # fmt: skip


def replay(problem, start, draws):
  """Returns the last state and the queries, counted as the reference does."""
  state = jax.jit(partial(begin, problem))(start)
  step = jax.jit(partial(update, problem))
  queries = np.ones(len(problem.image), int)
  for index, draw in enumerate(draws):
    queries += ~np.asarray(state.fooled)
    state = step(index, state, draw(state))
  return state, queries


def shared(count, corner, source, sign, lying):
  """One draw for all images."""
  rows = Draw(
    np.array(corner, np.int32),
    np.array(source, np.int32),
    np.array(sign, np.float32),
    np.array(lying),
  )
  return jax.tree.map(lambda row: jnp.stack([row] * count), rows)


def recorded(norm):
  """Returns the start and the steps' draws of the stored run."""
  vectors = golden_digits.load()
  flat = vectors[f'std/{GOLDEN[norm][0]}/square/draws']
  sizes = vectors[f'std/{GOLDEN[norm][0]}/square/draw_sizes']
  blocks = iter(np.split(flat, np.cumsum(sizes)[:-1]))
  if norm == 'linf':
    sign = next(blocks).reshape(32, 1, 8, 1)
    start = Start(jnp.asarray(sign), jnp.zeros((32, 1, 8), bool))
  else:
    sign = np.stack([next(blocks) for _ in range(64)], axis=1)
    start = Start(sign.reshape(32, 8, 8, 1), jnp.zeros((32, 8, 8), bool))

  def linf(state):
    row, column, sign = (next(blocks)[0] for _ in range(3))
    return shared(32, [row, column], [0, 0], [sign], False)

  def l2(state, lying):
    corners = [next(blocks)[0] for _ in range(4)]
    drawn = shared(32, corners[:2], corners[2:], [0], lying == '1')
    # Only images that are still attacked got a sign.
    sign = np.zeros((32, 1), np.float32)
    sign[~np.asarray(state.fooled)] = next(blocks)[:, None]
    return drawn._replace(sign=jnp.asarray(sign))

  steps = [partial(l2, lying=bit) for bit in LYING]
  return start, [linf] * 150 if norm == 'linf' else steps


@pytest.mark.parametrize('norm', GOLDEN)
def test_replay_of_the_stored_draws(norm):
  name, epsilon = GOLDEN[norm]
  vectors = golden_digits.load()
  state, queries = replay(golden_problem(norm, epsilon), *recorded(norm))
  stored = vectors[f'std/{name}/square/adv']
  np.testing.assert_allclose(state.point, stored, atol=1e-6)
  np.testing.assert_array_equal(
    queries, vectors[f'std/{name}/square/n_queries']
  )


@pytest.mark.parametrize('case', TOYS, ids=lambda case: case.norm)
def test_replay_with_channels_on_images_that_are_not_square(case):
  """The reference program was given the same numbers, in its own order."""
  problem = toy(case.norm, case.epsilon)
  stream = np.random.RandomState(0)
  uniform = lambda *s: stream.uniform(size=s or (1,)).astype(np.float32)  # noqa: E731
  sign = lambda *s: np.sign(2 * uniform(*s) - 1)  # noqa: E731
  if case.norm == 'linf':
    signs, lying = sign(3, 1, 15).transpose(1, 2, 0), np.zeros((1, 15), bool)
  else:
    tiles = [(uniform()[0] > 0.5, sign(3, 1, 1).ravel()) for _ in range(42)]
    lying = np.array([t[0] for t in tiles]).reshape(6, 7)
    signs = np.stack([t[1] for t in tiles]).reshape(6, 7, 3)
  start = Start(*(np.broadcast_to(a, (6, *a.shape)) for a in (signs, lying)))
  sizes = square_windows.sizes(13, 15, case.norm)

  def draw(state, index):
    side = sizes[np.sum(index > square_windows.HALVED_AFTER)]
    corners = [int(uniform()[0] * (n - side)) for n in (13, 15)]
    if case.norm == 'linf':
      return shared(6, corners, [0, 0], sign(3, 1, 1).ravel(), False)
    source = [int(uniform()[0] * (n - side)) for n in (13, 15)]
    lying = uniform()[0] > 0.5
    return shared(6, corners, source, sign(3, 1, 1).ravel(), lying)

  state, queries = replay(
    problem, start, [partial(draw, index=i) for i in range(case.steps)]
  )
  np.testing.assert_array_equal(queries, case.queries)
  np.testing.assert_allclose(state.margin, case.margins, atol=2e-4)
  squares = jnp.sum(state.point**2, axis=(1, 2, 3))
  np.testing.assert_allclose(squares, case.squares, atol=2e-3)


@pytest.mark.parametrize(
  'norm,epsilon', [('linf', 0.1), ('l2', 1.0), ('l1', 9.0)]
)
def test_own_draws_succeed_inside_ball_and_box(norm, epsilon):
  problem = toy(norm, epsilon)
  state = SQUARE.init(problem)
  before = int(state.fooled.sum())
  run = jax.jit(lambda s: advance(SQUARE, problem, s, 0, 300))
  state = run(state)
  assert before < int(state.fooled.sum()) and int(state.fooled.sum()) >= 5
  for point in (np.asarray(state.adv), np.asarray(state.point)):
    assert point.min() >= 0 and point.max() <= 1
    assert lengths(
      point - np.asarray(problem.image, np.float64), norm
    ).max() <= epsilon + 1e-6 * max(1, epsilon)
  found = margin(problem.logits_fn(state.adv), problem.label) > 0
  np.testing.assert_array_equal(state.fooled, found)
  kept = ~np.asarray(state.fooled)
  np.testing.assert_array_equal(state.adv[kept], problem.image[kept])


@pytest.mark.parametrize(
  'norm,epsilon', [('linf', 0.03), ('l2', 0.5), ('l1', 4.0)]
)
def test_an_image_does_not_depend_on_its_batch(norm, epsilon):
  problem = toy(norm, epsilon)
  rows = np.array([4, 1])

  def run(problem, state, first):
    return jax.jit(lambda s: advance(SQUARE, problem, s, first, first + 20))(
      state
    )

  part = rows_of(problem, rows)
  halfway = run(problem, SQUARE.init(problem), 0)
  alone = run(part, SQUARE.init(part), 0)
  packed = jax.tree.map(lambda leaf: leaf[rows], halfway)
  for a, b in zip(run(part, packed, 20), run(part, alone, 20), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  assert np.any(packed.point[0] != packed.point[1])


def test_fooled_images_stop_changing():
  problem = toy('linf', 0.05)
  step = jax.jit(partial(SQUARE.step, problem))
  state = SQUARE.init(problem)
  frozen = np.flatnonzero(state.fooled)
  assert len(frozen)
  first = state
  for index in range(30):
    state = step(index, state)
    assert np.all(state.fooled[frozen])
  np.testing.assert_array_equal(state.point[frozen], first.point[frozen])
  assert np.any(np.asarray(state.point != first.point))


def test_windows_shrink_by_the_schedule_and_never_touch_the_last_row():
  many = 400
  image = jnp.zeros((many, 32, 32, 3))
  problem = Problem(
      image_keys(jax.random.key(1), jnp.arange(many)), lambda x: x, image,
      jnp.zeros(many, jnp.int32), Budget('linf', 0.1, 0.0), jnp.int32(0),
  )  # fmt: skip
  sides = {0: 29, 10: 29, 11: 20, 51: 14, 201: 10, 501: 7, 1001: 5, 2001: 4,
           4001: 3, 4999: 3, 6001: 2, 9000: 1}  # fmt: skip
  draw = jax.jit(partial(draw_step, problem))
  for index, side in sides.items():
    corner = np.asarray(draw(index).corner)
    assert corner.min() == 0 and corner.max() == 32 - side - 1, index
    for axis in (0, 1):
      assert len(np.unique(corner[:, axis])) == 32 - side
  odd = square_windows.sizes(32, 32, 'l2')
  np.testing.assert_array_equal(odd, [29, 21, 15, 11, 7, 5, 5, 3, 3, 3])
  assert square_windows.sizes(2, 4, 'l2').max() == 2


def test_signs_are_fair_and_differ_between_images_steps_and_channels():
  problem = golden_problem('l2', 0.5)
  problem = problem._replace(image=jnp.zeros((32, 8, 8, 3)))
  draws = [draw_step(problem, index) for index in range(40)]
  signs = np.stack([draw.sign for draw in draws])
  assert set(np.unique(signs)) == {-1.0, 1.0}
  assert np.all(np.abs(signs.mean((0, 1))) < 0.1)
  flat = signs.reshape(40, -1)
  assert np.linalg.matrix_rank(flat) == 40
  lying = np.mean([draw.lying for draw in draws])
  assert 0.45 < lying < 0.55


@pytest.mark.parametrize(
  'norm,epsilon', [('linf', 0.2), ('l2', 1.0), ('l1', 5.0)]
)
def test_two_classes_and_five_pixels_a_side(norm, epsilon):
  logits_fn, image, label, _ = two_classes()
  keys = image_keys(jax.random.key(0), jnp.arange(3))
  budget = Budget(norm, epsilon, 0.0, num_steps=60)
  adv = as_plain_attack(SQUARE)(keys, logits_fn, image, label, budget)
  assert np.all(margin(logits_fn(image), label) < 0)
  assert np.all(margin(logits_fn(adv), label) > 0)
  assert lengths(adv - image, norm).max() <= epsilon + 1e-6
