"""Options of a method, chosen by name."""

from typing import TypeVar

from jax_robust_kd.core import UserError

T = TypeVar('T')

# Earlier names of options, as configs of finished runs may have them.
RENAMED = {
  'mismatch': 'kl_to_teacher_adv',
  'clean_target': 'kl_to_teacher_clean',
  'label': 'cross_entropy_label',
}


def choose(key: str, value: str, options: dict[str, T]) -> T:
  """Returns `options[value]`.

  Args:
    key: name of the method's argument, for the message.
    value: name of the option.
    options: all options by name.

  Raises:
    UserError: there is no such option.
  """
  if value in options:
    return options[value]
  renamed = RENAMED.get(value)
  if renamed in options:
    raise UserError(f'method.{key}={value!r} is now called {renamed!r}')
  raise UserError(
    f'method.{key}={value!r} is unknown; use one of: {", ".join(options)}'
  )
