"""Everything that PGD is run for, once, so that many checks can look at it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jax_robust_kd.attacks import Budget
from jax_robust_kd.checks.programs import Record, record
from jax_robust_kd.checks.subject import Subject

_FACTORS = (0.5, 1, 2, 4, 8)  # of epsilon, up to a radius without effect


class Effort(NamedTuple):
  """How long the checks' own attacks run.

  Attributes:
    num_images: drawn of those given.
    num_steps: of PGD and APGD; PGD also runs twice as long.
    num_restarts: of PGD.
    num_queries: of Square.
    num_draws: of noise.
  """

  num_images: int = 100
  num_steps: int = 100
  num_restarts: int = 5
  num_queries: int = 1000
  num_draws: int = 1000


FULL = Effort()


class Trials(NamedTuple):
  """What PGD saw, for all checks that look at it.

  Attributes:
    one_step: one step of length epsilon from the image, FGSM.
    restarts: from random starts, the first of them twice as long.
    radii: [R] 0 first, the last without effect on what is reachable.
    curve: [R, N] bool, still correct at each radius.
  """

  one_step: Record
  restarts: list[Record]
  radii: list[float]
  curve: np.ndarray


def survives(run: Record, steps: int | None = None) -> np.ndarray:
  """Which images are correct, themselves and at every point of the path, [N].

  Args:
    run: of PGD.
    steps: look at the first only; None is all.
  """
  last = None if steps is None else steps + 1
  return run.correct & np.all(run.margin[:, :last] < 0, axis=1)


def after(run: Record, steps: int) -> np.ndarray:
  """Which images are correct, themselves and at the last of some steps, [N]."""
  return run.correct & (run.margin[:, steps] < 0)


def _unbounded(norm: str, pixels: int) -> float:
  """The radius at which the ball around any image holds all of [0, 1]."""
  return float({'linf': 1, 'l2': np.sqrt(pixels), 'l1': pixels}[norm])


def run_trials(
  subject: Subject,
  budget: Budget,
  effort: Effort,
  seed: int,
  show: Callable[[str], None],
) -> Trials:
  """Runs PGD in all the ways that the checks need; compiles once."""
  steps = effort.num_steps

  def run(number=0, **changes):
    settings = dict(
      norm=budget.norm,
      epsilon=budget.epsilon,
      steps=steps,
      max_steps=2 * steps,
      seed=seed + number,
    )
    return record(subject, **{**settings, **changes})

  show(f'PGD, {effort.num_restarts} restarts')
  restarts = [
    run(i, steps=steps if i else 2 * steps) for i in range(effort.num_restarts)
  ]
  end = _unbounded(budget.norm, subject.image[0].size)
  inside = [f * budget.epsilon for f in _FACTORS]
  radii = [0.0, *(r for r in inside if r < end), end]
  show(f'PGD at {len(radii)} radii')
  return Trials(
    run(steps=1, step_size=budget.epsilon, random=False),
    restarts,
    radii,
    np.array([survives(run(epsilon=r)) for r in radii]),
  )
