"""How verdicts are shown: as text, as JSON, and all checks as a table."""

from collections.abc import Iterable
import math

from jax_robust_kd.checks.check import LEVELS, Check, Verdict


def worst(verdicts: Iterable[Verdict]) -> str:
  """Returns the worst level of a report."""
  return max((v.level for v in verdicts), key=LEVELS.index, default='green')


def as_text(verdicts: Iterable[Verdict]) -> list[list[str]]:
  """Returns rows of name, level, value and meaning."""
  return [
    [
      v.name,
      v.level,
      ', '.join(f'{key} {value:.3g}' for key, value in v.value.items()),
      v.meaning,
    ]
    for v in verdicts
  ]


def as_json(verdicts: Iterable[Verdict]) -> dict:
  """Returns {'level', 'checks'}; a number that is not finite is a string."""
  verdicts = list(verdicts)
  rows = [
    {
      **v._asdict(),
      'value': {
        key: value if math.isfinite(value) else str(value)
        for key, value in v.value.items()
      },
    }
    for v in verdicts
  ]
  return {'level': worst(verdicts), 'checks': rows}


def as_table(checks: Iterable[Check]) -> str:
  """Returns checks with their limits as a table in Markdown."""
  lines = [
    '| check | green | limit: amber above / red above | otherwise |',
    '|---|---|---|---|',
  ]
  for check in checks:
    each = (
      f'{name}: {limit.amber:g} / {limit.red:g}'
      for name, limit in check.limits.items()
    )
    cells = f'`{check.name}`', check.green, '; '.join(each), check.otherwise
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines).replace('/ inf', '/ never')
