"""A check: a measurement, its limits, and what green and red mean."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax_robust_kd.checks.evidence import Evidence

LEVELS = ('green', 'amber', 'red')


def nothing(num_images: int) -> float:
  """Returns 0: a single image too many is red."""
  del num_images
  return 0.0


def one_image(num_images: int) -> float:
  """Returns the percentage points that one image makes."""
  return 100 / num_images


def by_chance(num_images: int) -> float:
  """Returns the points that chance explains where 0.5 of all images are true.

  Of N images drawn, the number that is misclassified is binomial: of 100, one
  image is already 1 point. So many or fewer are seen in 99 of 100 draws if
  0.5 % of all images are misclassified; more are not chance. 3 points of 100
  images, 1.1 of 1000.

  Args:
    num_images: N.
  """
  share, count = 0.005, 0
  total = min(num_images, 100_000)  # of more, nothing is left to chance
  likely = (1 - share) ** total
  more = 1 - likely  # the probability of more than `count`
  while more > 0.01:
    likely *= (total - count) / (count + 1) * share / (1 - share)
    count += 1
    more -= likely
  return 100 * count / total


class Limit(NamedTuple):
  """More than `amber` is amber, more than `red` is red.

  In percentage points where nothing else is said. The limits put into numbers
  what the checklist of Carlini et al. 2019 and the flags of AutoAttack (Croce
  & Hein 2020) warn of.

  Attributes:
    amber: the largest green number.
    red: the largest amber number.
    forgiven: number of images -> a number that is never red, such as what one
      image makes.
  """

  amber: float
  red: float
  forgiven: Callable[[int], float] = nothing


# Numbers to show and numbers to compare with limits.
Measured = tuple[Mapping[str, float], Mapping[str, float]]


class Check(NamedTuple):
  """One question about an evaluation.

  Attributes:
    name: of the check.
    measure: evidence -> (numbers to show, numbers to compare). The first are
      by name, accuracies and shares in percent; the second by name of limit.
    limits: by name; the worst level counts.
    green: one sentence, what holds when it is green.
    otherwise: one sentence, what does not hold, and what to do.
  """

  name: str
  measure: Callable[[Evidence], Measured]
  limits: dict[str, Limit]
  green: str
  otherwise: str


class Verdict(NamedTuple):
  """One line of the report.

  Attributes:
    name: of the check.
    level: 'green', 'amber' or 'red'.
    value: the numbers behind it, by name; accuracies and shares in percent.
    meaning: one sentence on what it says and, unless green, what to do.
  """

  name: str
  level: str
  value: dict[str, float]
  meaning: str


def grade(limit: Limit, number: float, num_images: int) -> str:
  """Returns the level of a number; not-a-number is red."""
  forgiven = limit.forgiven(num_images) * (1 + 1e-9)  # of rounded differences
  if not number <= max(limit.red, forgiven):
    return 'red'
  return 'amber' if number > limit.amber else 'green'


def judge(check: Check, evidence: Evidence) -> Verdict:
  """Measures, and returns the worst level over all limits of a check."""
  value, numbers = check.measure(evidence)
  if numbers.keys() != check.limits.keys():
    raise ValueError(f'{check.name} measures {set(numbers)}, not its limits')
  total = len(evidence.model.label)
  levels = [grade(check.limits[key], x, total) for key, x in numbers.items()]
  level = max(levels, key=LEVELS.index)
  meaning = check.green if level == 'green' else check.otherwise
  shown = {key: float(x) for key, x in value.items()}
  return Verdict(check.name, level, shown, meaning)
