"""Every public name of the library carries an example that runs."""

import doctest

import pytest

from jax_robust_kd import losses, methods, models

NAMES = [
  (module, name)
  for module in (losses, methods, models)
  for name in module.__all__
  if not name.isupper()  # tables of names
]


def sections(text: str) -> list[str]:
  """Returns the headings of a Google docstring."""
  lines = [line.strip() for line in text.splitlines()]
  return [line for line in lines if line.endswith(':') and ' ' not in line]


@pytest.mark.parametrize(
  'module,name', NAMES, ids=lambda x: getattr(x, '__name__', x)
)
def test_the_example_in_the_docstring_runs(module, name):
  public = getattr(module, name)
  finder = doctest.DocTestFinder(recurse=False)
  (example,) = finder.find(public, name, globs={})
  assert example.examples, 'the docstring has no example'
  printed = []
  result = doctest.DocTestRunner(verbose=False).run(example, out=printed.append)
  assert result.attempted >= 2 and not result.failed, ''.join(printed)
  assert sections(public.__doc__)[-2:] in (
    ['Examples:', 'References:'],
    ['Returns:', 'Examples:'],
    ['Raises:', 'Examples:'],
  ), 'sections come in the order Args, Returns, Raises, Examples, References'


def test_public_lists_are_whole():
  """What a user may import, and nothing that starts with an underscore."""
  assert len(methods.METHODS) == 28
  for module in (losses, methods, models):
    assert len(set(module.__all__)) == len(module.__all__)
    assert not [name for name in module.__all__ if name.startswith('_')]
