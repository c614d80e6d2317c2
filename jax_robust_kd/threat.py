"""Threat models: norms, radii, and RobustBench's by name."""

from fractions import Fraction
from typing import Any

from jax_robust_kd.attacks import Budget
from jax_robust_kd.core import UserError

# Name -> norm and epsilon, as RobustBench reports them (Croce et al. 2021).
THREATS = {
  'linf_8_255': ('linf', '8/255'),
  'l2_0.5': ('l2', '0.5'),
  'imagenet_linf_4_255': ('linf', '4/255'),
}


def parse_radius(name: str, value: str) -> float:
  """Reads a radius such as '8/255' or '0.5'.

  Args:
    name: the field, for the message.
    value: the text.

  Returns:
    The number, in pixel range 0-1.

  Raises:
    UserError: not a positive number, or a decimal so close to n/255 that n/255
      was probably meant; it is refused rather than silently changed.
  """
  try:
    number = Fraction(str(value).replace(' ', ''))
  except (ValueError, ZeroDivisionError):
    raise UserError(
      f"{name}={value!r} is not a number; write it like '8/255' or '0.5'"
    ) from None
  if number <= 0:
    raise UserError(f'{name}={value!r} must be positive, like 8/255')
  pixels = number * 255
  nearest = round(pixels)
  close = nearest and abs(pixels - nearest) < Fraction(12, 100)
  if '/' not in str(value) and close and pixels != nearest and number < 0.2:
    raise UserError(
      f'{name}={value!r} is {float(pixels):.3f}/255: write {nearest}/255 if '
      f'that is meant, or {number} if you mean exactly {value}'
    )
  return float(number)


def check_radii(
  group: str,
  norm: str,
  epsilon: str,
  step_size: str,
  norms: tuple[str, ...] = ('linf', 'l2'),
) -> None:
  """Checks a threat model before anything is compiled.

  Raises:
    UserError: unknown norm, a radius in units of 255, a step longer than the
      radius (the two are easily swapped).
  """
  if norm not in norms:
    choices = ', '.join(norms)
    raise UserError(f'{group}.norm={norm!r} is unknown; use one of: {choices}')
  radius = parse_radius(f'{group}.epsilon', epsilon)
  step = parse_radius(f'{group}.step_size', step_size)
  if norm == 'linf' and radius > 1:
    raise UserError(
      f'{group}.epsilon={epsilon} is larger than the pixel range 0-1; write '
      f'{epsilon}/255 for {epsilon} grey levels'
    )
  if step > radius:
    raise UserError(
      f'{group}.step_size={step_size} is larger than {group}.epsilon='
      f'{epsilon}; are the two swapped?'
    )


def threat_model(c: Any) -> tuple[str, str, str]:
  """Returns norm, epsilon and step size that a config evaluates.

  The parts of `eval` go first, then `eval.threat`, then `train_attack`. With a
  threat by name the step size is a quarter of its epsilon.
  """
  keys = ('norm', 'epsilon', 'step_size')
  named = THREATS.get(c.eval.threat, ('', ''))
  if named[1]:
    named = (*named, f'{Fraction(named[1]) / 4}')
  norm, epsilon, step_size = (
    c.eval[key] or (named[i] if named[1] else c.train_attack[key])
    for i, key in enumerate(keys)
  )
  return norm, epsilon, step_size


def make_budget(c: Any) -> Budget:
  """Builds the threat model that is evaluated."""
  norm, epsilon, step_size = threat_model(c)
  return Budget(
    norm=norm,
    epsilon=parse_radius('eval.epsilon', epsilon),
    step_size=parse_radius('eval.step_size', step_size),
  )
