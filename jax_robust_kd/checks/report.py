"""What a check returns, where green ends, and how a report is shown."""

from collections.abc import Iterable, Mapping
import math
from typing import Any, NamedTuple

LEVELS = ('green', 'amber', 'red')


class Check(NamedTuple):
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


class Limit(NamedTuple):
  """More than `amber` is amber, more than `red` is red."""

  amber: float
  red: float


# Percentage points where nothing else is said. They put into numbers what the
# checklist of Carlini et al. 2019 and the flags of AutoAttack (Croce & Hein
# 2020) warn of. More than half a point of accuracy that longer attacks take
# away is amber, as that happens to honest networks; no single image is red.
LIMITS: dict[str, Limit] = {
  'below chance': Limit(-10, -1),
  'relative logit difference': Limit(1e-5, 1e-4),  # not points
  'not logits': Limit(0, 0),
  'cross-entropy minus targeted': Limit(2, 5),
  'median logit gap': Limit(17, math.inf),  # nats; see `gradients`
  'zero gradient': Limit(0, 1),
  'zero loss at the start': Limit(1, math.inf),
  'zero loss at the end': Limit(0, 1),
  'epsilon 0 differs': Limit(0, 0),
  'iterating loses': Limit(0, 0.5),
  'more steps gain': Limit(0.5, 5),
  'more restarts gain': Limit(0.5, 5),
  'checks gain': Limit(0.5, 5),
  'curve rises': Limit(0, 0.5),
  'left without a bound': Limit(1, math.inf),
  'left above chance': Limit(0, 0),
  'noise gains': Limit(0, 0.5),
  'square gains': Limit(0, 0.2),
  'precision changes': Limit(0, 0.5),
  'outside': Limit(0, 0),  # pixel range 0-1, or number of bad values
  'borderline flags differ': Limit(0, math.inf),
  'flags differ': Limit(0, 0),
}

# What to say when a check is green, and when it is not.
MEANINGS: dict[str, tuple[str, str]] = {
  'clean': (
    'The images fit the model.',
    'Hardly better than guessing: check labels and preprocessing first, as '
    'nothing below means much.',
  ),
  'determinism': (
    'The same batch gives the same logits.',
    'The same batch gives different logits: turn dropout and noise off, or '
    'attack the average over draws.',
  ),
  'batches': (
    'Logits do not depend on the rest of the batch.',
    'Logits depend on the rest of the batch: put BatchNorm into evaluation '
    'mode, in the attack too.',
  ),
  'logits': (
    'The outputs are logits.',
    'The outputs are probabilities or not finite: return what comes before '
    'the softmax, or gradients vanish.',
  ),
  'scale': (
    'Attacks that see the scale of the logits and that do not agree.',
    'The scale of the logits blinds the cross-entropy: trust only attacks '
    'that are invariant to it, such as APGD-T.',
  ),
  'gradients': (
    'Gradients are there, at the image and along the path.',
    'Gradients or losses are exactly 0, so gradient attacks stand still: '
    'replace the non-differentiable part (BPDA) or rescale the logits.',
  ),
  'epsilon_zero': (
    'A radius of 0 changes nothing.',
    'A radius of 0 changes the result: the attack does not see the model '
    'that is scored.',
  ),
  'one_step': (
    'More steps are never weaker than one.',
    'An iterative attack is weaker than a shorter one: its gradients '
    'mislead it, so the accuracy under it is too high.',
  ),
  'convergence': (
    'Twice the steps find nothing more.',
    'Twice the steps find more: the accuracy is an upper bound; take more.',
  ),
  'restarts': (
    'More restarts find nothing more.',
    'More restarts find more: the accuracy is an upper bound; take more.',
  ),
  'reported': (
    'The attacks of the checks find nothing more.',
    'The attacks of the checks break more than the evaluation did: report the '
    'lower accuracy, and run a stronger suite.',
  ),
  'epsilon_curve': (
    'Accuracy falls with the radius, to nothing.',
    'Accuracy does not fall with the radius to nothing, as any image can '
    'become any other: the attack fails, the model is not robust.',
  ),
  'noise': (
    'Random noise breaks nothing that gradients do not.',
    'Random noise breaks what gradients do not: gradients are masked.',
  ),
  'square': (
    'Square breaks nothing that gradients do not.',
    'Square, without gradients, breaks what gradients do not: they are '
    'masked; count only the worst case and adapt an attack.',
  ),
  'precision': (
    'Rounding does not decide.',
    'The accuracy depends on the precision of products: attack and score in '
    'float32 with the highest matmul precision.',
  ),
  'box': (
    'Adversarial images are in the ball and in [0, 1].',
    'Adversarial images leave the ball or [0, 1], or are not finite: the '
    'attack is wrong, so do not count them.',
  ),
  'rescoring': (
    'Saved adversarial images, scored again, give the same flags.',
    'Saved adversarial images, scored again, give other flags: another '
    'model, mode or precision was attacked (amber: only ties differ).',
  ),
}


def grade(limit: str, number: float, one_image: float = 0.0) -> str:
  """Returns the level of a number; not-a-number is red.

  Args:
    limit: a key of LIMITS.
    number: to compare.
    one_image: in the unit of the number; so much is never red.
  """
  amber, red = LIMITS[limit]
  if not number <= max(red, one_image):
    return 'red'
  return 'amber' if number > amber else 'green'


def check(name: str, value: Mapping[str, Any], *levels: str) -> Check:
  """Returns the check `name` at the worst of some levels."""
  level = max(levels, key=LEVELS.index)
  meaning = MEANINGS[name][level != 'green']
  return Check(name, level, {k: float(v) for k, v in value.items()}, meaning)


def worst(checks: Iterable[Check]) -> str:
  """Returns the worst level of a report."""
  return max((c.level for c in checks), key=LEVELS.index, default='green')


def as_text(checks: Iterable[Check]) -> list[list[str]]:
  """Returns rows of name, level, value and meaning."""
  return [
    [
      c.name,
      c.level,
      ', '.join(f'{key} {value:.3g}' for key, value in c.value.items()),
      c.meaning,
    ]
    for c in checks
  ]


def as_json(checks: Iterable[Check]) -> dict:
  """Returns {'level', 'checks'}; a number that is not finite is a string."""
  checks = list(checks)
  rows = [
    {
      **c._asdict(),
      'value': {
        key: value if math.isfinite(value) else str(value)
        for key, value in c.value.items()
      },
    }
    for c in checks
  ]
  return {'level': worst(checks), 'checks': rows}
