"""The tests' own layout: they mirror the package, and stand alone."""

import ast
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[2]
TESTS = sorted((ROOT / 'tests').rglob('test_*.py'))
OF_TESTS_ALONE = {'contracts', 'faults', 'golden', 'helpers', 'launch'}


def folders(root: Path) -> set[str]:
  return {p.relative_to(root).parts[0] for p in root.glob('*/*.*')}


def test_files_that_begin_first_are_there():
  """Those that tests/conftest.py names."""
  tree = ast.parse((ROOT / 'tests/conftest.py').read_text())
  (names,) = (
    ast.literal_eval(node.value)
    for node in tree.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets) == 'LONGEST'
  )
  assert names and set(names) <= {p.stem for p in TESTS}


def test_folders_are_those_of_the_package():
  found = folders(ROOT / 'tests') - {'__pycache__'}
  assert found >= OF_TESTS_ALONE
  assert found - OF_TESTS_ALONE <= folders(ROOT / 'jax_robust_kd')


@pytest.mark.parametrize('path', TESTS, ids=lambda p: p.stem)
def test_no_test_imports_another(path):
  """What several tests share lies in tests/helpers."""
  names = {p.stem for p in TESTS} | {'conftest', 'tests'}
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom):
      modules = [node.module or '.']
    elif isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    else:
      continue
    for module in modules:
      assert not names & set(module.split('.')), f'{path} imports {module}'


def test_tests_that_pages_name_are_there():
  pages = [*ROOT.glob('*.md'), *ROOT.glob('[a-z]*/**/*.md')]
  pages += ROOT.glob('[a-z]*/**/*.py')
  found = 0
  for page in pages:
    for name in re.findall(r'\btests/[\w*/]+\.py\b', page.read_text()):
      assert list(ROOT.glob(name)), f'{page} names {name}'
      found += 1
  assert found >= 10
