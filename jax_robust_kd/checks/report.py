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
# 2020) warn of. No single image is red, nor a gain that `by_chance` explains.
LIMITS: dict[str, Limit] = {
  'below chance': Limit(-10, -1),
  'relative logit difference': Limit(1e-5, 1e-4),  # not points
  'not logits': Limit(0, 0),
  'cross-entropy minus targeted': Limit(2, 5),
  'median logit gap': Limit(17, math.inf),  # nats; see `gradients`
  'one kind alone misses': Limit(5, math.inf),
  'zero gradient': Limit(0, 1),
  'zero loss at the start': Limit(0, 1),
  'zero loss, broken all the same': Limit(1, math.inf),
  'zero loss at the end': Limit(0, 1),
  'epsilon 0 differs': Limit(0, 0),
  'iterating loses': Limit(0, 0.5),
  'more steps gain': Limit(0.5, 0.5),
  'more restarts gain': Limit(0.5, 0.5),
  'checks gain': Limit(0.5, 0.5),
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


class Meaning(NamedTuple):
  """What a check says.

  Attributes:
    limits: keys of LIMITS that it looks at; the worst of them counts.
    green: what holds when it is green.
    otherwise: what does not when it is not, and what to do.
  """

  limits: tuple[str, ...]
  green: str
  otherwise: str


MEANINGS: dict[str, Meaning] = {
  'clean': Meaning(
    ('below chance',),
    'The images fit the model.',
    'Hardly better than guessing: check labels and preprocessing first, as '
    'nothing below means much.',
  ),
  'determinism': Meaning(
    ('relative logit difference',),
    'The same batch gives the same logits.',
    'The same batch gives different logits: turn dropout and noise off, or '
    'attack the average over draws.',
  ),
  'batches': Meaning(
    ('relative logit difference',),
    'Logits do not depend on the rest of the batch.',
    'Logits depend on the rest of the batch: put BatchNorm into evaluation '
    'mode, in the attack too.',
  ),
  'logits': Meaning(
    ('not logits',),
    'The outputs are logits.',
    'The outputs are probabilities or not finite: return what comes before '
    'the softmax, or gradients vanish.',
  ),
  'scale': Meaning(
    ('cross-entropy minus targeted', 'median logit gap'),
    'Attacks that see the scale of the logits agree with those that do not.',
    'The scale of the logits blinds the cross-entropy: trust only attacks '
    'that are invariant to it, such as APGD-T.',
  ),
  'targets': Meaning(
    ('one kind alone misses',),
    'Attacks with targets and without find about the same.',
    'Attacks with targets and without find different images: run both, and '
    'count only the worst case.',
  ),
  'gradients': Meaning(
    (
      'zero gradient',
      'zero loss at the start',
      'zero loss, broken all the same',
      'zero loss at the end',
    ),
    'Gradients are there, at the image and along the path.',
    'Gradients or losses are exactly 0, so gradient attacks stand still: '
    'replace the non-differentiable part (BPDA) or rescale the logits.',
  ),
  'epsilon_zero': Meaning(
    ('epsilon 0 differs',),
    'A radius of 0 changes nothing.',
    'A radius of 0 changes the result: the attack does not see the model '
    'that is scored.',
  ),
  'one_step': Meaning(
    ('iterating loses',),
    'More steps are never weaker than one.',
    'An iterative attack is weaker than a shorter one: its gradients '
    'mislead it, so the accuracy under it is too high.',
  ),
  'convergence': Meaning(
    ('more steps gain',),
    'Twice the steps find nothing more.',
    'Twice the steps find more: the accuracy is an upper bound; take more.',
  ),
  'restarts': Meaning(
    ('more restarts gain',),
    'More restarts find nothing more.',
    'More restarts find more: the accuracy is an upper bound; take more.',
  ),
  'epsilon_curve': Meaning(
    ('curve rises', 'left without a bound', 'left above chance'),
    'Accuracy falls with the radius, to nothing.',
    'Accuracy does not fall with the radius to nothing, as any image can '
    'become any other: the attack fails, the model is not robust.',
  ),
  'noise': Meaning(
    ('noise gains',),
    'Random noise breaks nothing that gradients do not.',
    'Random noise breaks what gradients do not: gradients are masked.',
  ),
  'square': Meaning(
    ('square gains',),
    'Square breaks nothing that gradients do not.',
    'Square, without gradients, breaks what gradients do not: they are '
    'masked; count only the worst case and adapt an attack.',
  ),
  'precision': Meaning(
    ('precision changes',),
    'Rounding does not decide.',
    'The accuracy depends on the precision of products: attack and score in '
    'float32 with the highest matmul precision.',
  ),
  'box': Meaning(
    ('outside',),
    'Adversarial images are in the ball and in [0, 1].',
    'Adversarial images leave the ball or [0, 1], or are not finite: the '
    'attack is wrong, so do not count them.',
  ),
  'rescoring': Meaning(
    ('flags differ', 'borderline flags differ'),
    'All adversarial images, scored again, give the same flags.',
    'Adversarial images, scored again, give other flags: another '
    'model, mode or precision was attacked (amber: only ties differ).',
  ),
  'reported': Meaning(
    ('checks gain',),
    'The attacks of the checks find nothing more.',
    'The attacks of the checks break more than the evaluation did: report the '
    'lower accuracy, and run a stronger suite.',
  ),
}


def by_chance(num_images: int) -> float:
  """Returns the points that chance explains where 0.5 of all images are true.

  Of N images drawn, those that fall are binomial: of 100, one image is already
  1 point. So many or fewer are seen in 99 of 100 draws if 0.5 % of all images
  fall; more are not chance. 3 points of 100 images, 1.1 of 1000.

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


def grade(limit: str, number: float, forgiven: float = 0.0) -> str:
  """Returns the level of a number; not-a-number is red.

  Args:
    limit: a key of LIMITS.
    number: to compare.
    forgiven: in the unit of the number; so much is never red, such as what one
      image makes, or chance.
  """
  amber, red = LIMITS[limit]
  if not number <= max(red, forgiven * (1 + 1e-9)):  # of rounded differences
    return 'red'
  return 'amber' if number > amber else 'green'


def check(name: str, value: Mapping[str, Any], *levels: str) -> Check:
  """Returns the check `name` at the worst of some levels."""
  level = max(levels, key=LEVELS.index)
  meaning = MEANINGS[name]
  said = meaning.green if level == 'green' else meaning.otherwise
  return Check(name, level, {k: float(v) for k, v in value.items()}, said)


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


def as_table() -> str:
  """Returns all checks and limits as a table in Markdown."""
  lines = [
    '| check | green | limit: amber above / red above | otherwise |',
    '|---|---|---|---|',
  ]
  for name, (limits, green, otherwise) in MEANINGS.items():
    each = (
      f'{limit}: {LIMITS[limit].amber:g} / {LIMITS[limit].red:g}'
      for limit in limits
    )
    cells = (f'`{name}`', green, '; '.join(each), otherwise)
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines).replace('/ inf', '/ never')
