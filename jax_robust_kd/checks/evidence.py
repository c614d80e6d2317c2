"""All that is run before the checks look at it."""

from typing import NamedTuple

import numpy as np

from jax_robust_kd.attacks import Budget
from jax_robust_kd.checks.model import Model, Outcome
from jax_robust_kd.checks.pgd import (
  OWN_ATTACKS,
  Trace,
  run_attack,
  run_pgd,
  survives,
)
from jax_robust_kd.core import Progress

_FACTORS = (0.5, 1, 2, 4, 8)  # of epsilon, up to a radius without effect


class Options(NamedTuple):
  """How long the checks' own attacks run, and how.

  Attributes:
    num_images: drawn of those given.
    num_steps: of PGD and APGD; PGD also runs twice as long.
    num_restarts: of PGD.
    num_queries: of Square.
    num_draws: of noise.
    batch_size: images of a call.
    seed: of the choice of images and of the attacks.
    progress: told what is being run.
  """

  num_images: int = 100
  num_steps: int = 100
  num_restarts: int = 5
  num_queries: int = 1000
  num_draws: int = 1000
  batch_size: int = 100
  seed: int = 0
  progress: Progress = Progress()


FULL = Options()


class PGDRuns(NamedTuple):
  """The runs of PGD, each done once for all checks.

  Attributes:
    one_step: one step of length epsilon from the image, FGSM.
    restarts: from random starts, the first of them twice as long.
    radii: [R] 0 first, the last without effect on what is reachable.
    curve: [R, N] bool, still correct at each radius.
  """

  one_step: Trace
  restarts: list[Trace]
  radii: list[float]
  curve: np.ndarray


class Evidence(NamedTuple):
  """What the checks look at.

  Attributes:
    model: with the N images drawn.
    budget: norm, radius and number of targets.
    options: how long attacks ran.
    runs: of PGD.
    outcomes: of other attacks on the N images, by name.
    scored: models and outcomes of all adversarial images.
    reported: [N] bool, correct in the worst case of the evaluation, or None.
  """

  model: Model
  budget: Budget
  options: Options
  runs: PGDRuns
  outcomes: dict[str, Outcome]
  scored: tuple[tuple[Model, dict[str, Outcome]], ...]
  reported: np.ndarray | None


def percent(correct: np.ndarray) -> float:
  """Returns the share of True in percent."""
  return 100 * float(np.mean(correct))


def kind(name: str) -> str:
  """Returns 'square' for 'square-500' and 'autoattack.square'."""
  return name.split('.')[-1].split('-')[0]


def under(e: Evidence, *kinds: str) -> np.ndarray:
  """Returns which images stay correct under all attacks of some kinds, [N]."""
  return np.all(
    [o.correct for name, o in e.outcomes.items() if kind(name) in kinds], axis=0
  )


def under_attacks(e: Evidence) -> np.ndarray:
  """Returns which stay correct under all attacks by gradients but PGD, [N]."""
  return under(e, *({kind(name) for name in e.outcomes} - {'square'}))


def under_gradients(e: Evidence) -> np.ndarray:
  """Returns which stay correct under all attacks by gradients, [N]."""
  flags = [survives(trace) for trace in (e.runs.one_step, *e.runs.restarts)]
  return np.all([under_attacks(e), *flags], axis=0)


def with_pgd(runs: PGDRuns, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
  """Returns outcomes and that of the first restart of PGD."""
  first = runs.restarts[0]
  return {**outcomes, 'PGD': Outcome(survives(first), first.adv)}


def run_all_pgd(model: Model, budget: Budget, options: Options) -> PGDRuns:
  """Runs PGD in all the ways that the checks need; compiles once."""
  steps = options.num_steps

  def run(number=0, **changes):
    settings = dict(
      norm=budget.norm,
      epsilon=budget.epsilon,
      steps=steps,
      max_steps=2 * steps,
      seed=options.seed + number,
    )
    return run_pgd(model, **{**settings, **changes})

  options.progress.say(f'PGD, {options.num_restarts} restarts')
  restarts = [
    run(i, steps=steps if i else 2 * steps) for i in range(options.num_restarts)
  ]
  pixels = model.image[0].size
  # From here on the ball around any image holds all of [0, 1].
  end = float({'linf': 1, 'l2': np.sqrt(pixels), 'l1': pixels}[budget.norm])
  inside = [f * budget.epsilon for f in _FACTORS]
  radii = [0.0, *(r for r in inside if r < end), end]
  options.progress.say(f'PGD at {len(radii)} radii')
  return PGDRuns(
    run(steps=1, step_size=budget.epsilon, random=False),
    restarts,
    radii,
    np.array([survives(run(epsilon=r)) for r in radii]),
  )


def run_missing(
  model: Model,
  budget: Budget,
  options: Options,
  outcomes: dict[str, Outcome],
) -> dict[str, Outcome]:
  """Runs those of OWN_ATTACKS of which there is no outcome."""
  missing = OWN_ATTACKS.keys() - {kind(name) for name in outcomes}
  found = {}
  for name in sorted(missing):
    options.progress.say(name)
    steps = options.num_queries if name == 'square' else options.num_steps
    single = budget._replace(num_steps=steps, num_restarts=1, num_eot=1)
    found[name] = run_attack(model, name, single, options.seed)
  return found
