"""Templates of a report: whatever is put into one appears as text."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jax_robust_kd.runtime.console import printable


def render(name: str, **values: Any) -> str:
  """Renders a template; everything that is put in appears as text."""
  environment = Environment(
    loader=PackageLoader('jax_robust_kd.report'),
    autoescape=lambda template: bool(template) and '.html' in template,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    finalize=_visible,
  )
  environment.filters['number'] = lambda x, digits=1: f'{x:.{digits}f}'
  return environment.get_template(name).render(**values)


def _visible(value: Any) -> Any:
  is_text = isinstance(value, str) and not isinstance(value, Markup)
  return printable(value, '\n') if is_text else value
