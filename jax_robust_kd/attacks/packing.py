"""Runs an attack on any number of images; those that have fallen leave it.

Each image has its own key, so its fate does not hang on its neighbours.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.programs import Runner, make_program
from jax_robust_kd.attacks.stepwise import Problem, Stepwise, advance
from jax_robust_kd.core import PyTree, image_keys
from jax_robust_kd.losses import margin
from jax_robust_kd.runtime import faults

_ROUNDING = 1e-6  # float32 rounding allowed outside of the ball
_ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}


Key = Callable[[], jax.Array]


class Rows(NamedTuple):
  """Images to attack.

  Attributes:
    image: [N, H, W, C] float32 in [0, 1].
    label: [N] int32.
    place: [N] int32, which image it is; its key is a fold of it.
  """

  image: np.ndarray
  label: np.ndarray
  place: np.ndarray


class Attacked(NamedTuple):
  """What an attack left of some images.

  Attributes:
    adv: [N, H, W, C] float32.
    margin: [N] largest wrong logit minus the right one; < 0 is correct.
  """

  adv: np.ndarray
  margin: np.ndarray


def make_judge(budget: Budget, key: Key, runner: Runner) -> Callable:
  """Builds the program (apply, rows) -> margin [N]."""
  score = make_program('score', partial(_score, budget), runner)
  return lambda apply, rows: score(apply, _scalars(key, 0), rows)


def _score(budget: Budget, shared: tuple, rows: Rows) -> jax.Array:
  apply, scalars = shared
  more = (_keys(scalars, rows),) if budget.num_eot > 1 else ()
  return margin(apply(rows.image, *more), jnp.asarray(rows.label))


def make_probe(budget: Budget, key: Key, runner: Runner) -> Callable:
  """Builds (apply, rows) -> [N] bool: is the gradient by the image finite?"""
  probe = make_program('gradient', partial(_probe, budget), runner, True)
  return lambda apply, rows: probe(apply, _scalars(key, 0), rows)


def _probe(budget: Budget, shared: tuple, rows: Rows) -> jax.Array:
  gradient = jax.grad(
    lambda x: jnp.sum(_score(budget, shared, rows._replace(image=x)))
  )(rows.image)
  return jnp.all(jnp.isfinite(gradient), axis=(1, 2, 3))


def make_attack(
  name: str,
  attack: Callable | Stepwise | None,
  budget: Budget,
  key: Key,
  judged: Callable,
  runner: Runner,
) -> Callable:
  """Builds `run(apply, judge, rows) -> Attacked`; None is no attack at all.

  `apply` is attacked and `judge` decides; both are image -> logits as
  `jax.tree_util.Partial`, whose arrays are arguments of the programs. With
  `budget.num_eot` above 1 both take keys [B] as second argument.

  Args:
    name: of the column, for the log.
    attack: plain, in pieces, or None.
    budget: the threat model and the length.
    key: () -> the key of the column.
    judged: from `make_judge`.
    runner: how programs are compiled and batches are cut.
  """
  if isinstance(attack, Stepwise):
    find = _in_pieces(name, attack, budget, key, runner)
  elif attack is None:
    find = lambda apply, rows: rows.image  # noqa: E731
  else:
    whole = partial(_whole, attack, budget)
    program = make_program(name, whole, runner)
    find = lambda apply, rows: program(apply, _scalars(key, 0), rows)  # noqa: E731

  def run(apply: Partial, judge: Partial, rows: Rows) -> Attacked:
    adv = find(apply, rows)
    faults.point('attacked', column=name)
    check_inside(adv, rows.image, budget.norm, budget.epsilon)
    return Attacked(adv, judged(judge, rows._replace(image=adv)))

  return run


def _scalars(key: Key, run: int) -> dict:
  """What programs are told of the column and the run."""
  own = jax.random.fold_in(key(), run)
  return {'key': np.asarray(jax.random.key_data(own)), 'run': np.int32(run)}


def _keys(scalars: dict, rows: Rows) -> jax.Array:
  """One key per image, [n], of this column and run."""
  return image_keys(
    jax.random.wrap_key_data(scalars['key']), jnp.asarray(rows.place)
  )


def _whole(
  attack: Callable, budget: Budget, shared: tuple, rows: Rows
) -> jax.Array:
  apply, scalars = shared
  return attack(_keys(scalars, rows), apply, rows.image, rows.label, budget)


def _problem(budget: Budget, shared: tuple, rows: Rows) -> Problem:
  apply, scalars = shared
  rng, run = _keys(scalars, rows), scalars['run']
  image, label = jnp.asarray(rows.image), jnp.asarray(rows.label)
  return Problem(rng, apply, image, label, budget, run)


def _begin(
  attack: Stepwise, budget: Budget, shared: tuple, rows: Rows
) -> PyTree:
  return attack.init(_problem(budget, shared, rows))


def _go(
  attack: Stepwise, budget: Budget, shared: tuple, rows: tuple[Rows, PyTree]
) -> PyTree:
  span = shared[1]['first'], shared[1]['last']
  problem = _problem(budget, shared, rows[0])
  return advance(attack, problem, rows[1], *span)


def _in_pieces(
  name: str, attack: Stepwise, budget: Budget, key: Key, runner: Runner
) -> Callable:
  """Builds (apply, rows) -> adv, which drops fallen images between pieces."""
  begin, go = partial(_begin, attack, budget), partial(_go, attack, budget)
  start = make_program(f'{name} (start)', begin, runner, seldom=True)
  step = make_program(name, go, runner)
  steps = attack.num_steps(budget)

  def run_once(apply, rows: Rows, number: int) -> tuple:
    constants = _scalars(key, number)
    state = start(apply, constants, rows)
    for first, last in _spans(steps, attack.piece):
      alive = np.flatnonzero(~state.fooled)
      if not len(alive):
        break
      part = jax.tree.map(lambda x: x[alive], (rows, state))
      span = {'first': np.int32(first), 'last': np.int32(last)}
      moved = step(apply, constants | span, part)
      runner.tick((last - first) * len(rows.label))
      state = jax.tree.map(lambda a, b: _put(a, alive, b), state, moved)
    return state.adv, state.fooled

  def find(apply, rows: Rows) -> np.ndarray:
    num_classes = jax.eval_shape(
      lambda a, x: a(x, *_eot_keys(budget)), apply, rows.image[:1]
    ).shape[-1]
    adv, alive = rows.image.copy(), np.arange(len(rows.label))
    for number in range(attack.num_runs(budget, num_classes)):
      if not len(alive):
        break
      part = jax.tree.map(lambda x: x[alive], rows)
      found, fooled = run_once(apply, part, number)
      adv[alive] = found
      alive = alive[~fooled]
    return adv

  return find


def _spans(steps: int, piece: int) -> Iterator[tuple[int, int]]:
  """Yields (first, last) step of each piece.

  A piece is as long as all before it: most images that fall do so early, and
  one that has fallen waits no longer than it took.
  """
  first, last = 0, min(piece, steps)
  while first < steps:
    yield first, last
    first, last = last, min(2 * last, steps)


def _eot_keys(budget: Budget) -> tuple:
  one = jax.ShapeDtypeStruct((1,), jax.random.key(0).dtype)
  return (one,) if budget.num_eot > 1 else ()


def _put(x: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
  x = x.copy()
  x[rows] = values
  return x


def check_inside(
  adv: np.ndarray, image: np.ndarray, norm: str, epsilon: float
) -> None:
  """Checks in float64 that `adv` is in the ball around `image` and in [0, 1].

  Raises:
    AssertionError: it is not; that is a bug of the attack, never the user's.
  """
  adv = adv.astype(np.float64)
  assert np.all(np.isfinite(adv)), 'an adversarial image is not finite'
  assert adv.min() >= 0 and adv.max() <= 1, 'an adversarial image left [0, 1]'
  delta = (adv - image).reshape(len(adv), -1)
  largest = np.linalg.norm(delta, ord=_ORDERS[norm], axis=1).max()
  limit = epsilon + _ROUNDING * max(1.0, epsilon)
  assert largest <= limit, f'|delta| = {largest} > {epsilon}'
