"""The design held by tests: who may import whom, and how long things are."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

PACKAGE = Path(__file__).parents[2] / 'jax_robust_kd'
FILES = sorted(PACKAGE.rglob('*.py'))

# Floor of each folder or file at the top; a file imports lower floors only.
FLOORS = (
  {'core'},
  {'losses', 'runtime'},
  {'methods', 'attacks', 'models', 'data', 'planning'},
  {'threat', 'interop', 'checks', 'config_files'},
  {'config'},
  {'recipes', 'workdir'},
  {'networks', 'settings'},
  {'evaluation', 'commandline'},
  {'training', 'classifier'},
  {'report', 'predict'},
  {'job'},
  {'main'},
  {'analysis', 'compare'},
  {'__main__'},
)
LEVELS = {name: level for level, names in enumerate(FLOORS) for name in names}
# Inside a folder only these may be imported by their neighbours.
SHARED = {  # fmt: skip
  'config': {'defaults', 'names', 'checks', 'files'},
  'methods': {'inner_problems', 'outer_losses', 'features', 'options'}
  | {'input_gradient'},
  'attacks': {
    'ascent',
    'gradient',
    'stepwise',
    'batching',
    'packing',
    'suites',
    'engine',
    'l1',
    'hyperplane',
    'apgd_state',
    'apgd_schedule',
    'apgd',
    'fab',
    'square_windows',
    'square',
  },
  'interop': {'layouts', 'read', 'torch_import', 'torch_export'}
  | {'torch_networks'},
  'models': {'conv', 'narrow_conv', 'layers'},
  'compare': {'budget', 'children', 'configs', 'cost', 'outputs', 'run'}
  | {'scatter', 'tables'},
  'data': {
    'source',
    'split',
    'npz',
    'folders',
    'decode',
    'lazy',
    'parts',
    'stream',
    'extra',
    'cifar',
    'tfds_source',
    'tfds_prepare',
    'augment',
    'image_ops',
    'policies',
    'policy_tables',
    'spatial',
  },
}
# A method that is added to others, and imports them.
ADDED = {('methods', 'igdm')}
# Names from the same level that are allowed, each with its reason.
ALLOWED = {
  ('build', 'evaluate'): 'never',
}


def parts_of(path: Path) -> tuple[str, ...]:
  return path.relative_to(PACKAGE).with_suffix('').parts


def imports(path: Path) -> set[tuple[str, ...]]:
  """Returns ('methods', 'inner') for each import of our own."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      names = node.module.split('.')
      if names[0] == 'jax_robust_kd':
        tails = [a.name for a in node.names]
        found |= {(*names[1:], tail) for tail in tails}
    elif isinstance(node, ast.Import):
      for alias in node.names:
        names = alias.name.split('.')
        if names[0] == 'jax_robust_kd':
          found.add(tuple(names[1:]))
  return {f for f in found if f and not f[0].startswith('__')}


@pytest.mark.parametrize('path', FILES, ids=lambda p: '/'.join(parts_of(p)))
def test_imports_point_down(path):
  own = parts_of(path)
  if own == ('__init__',):
    return
  level = LEVELS[own[0]]
  for target in imports(path):
    if target[0] == own[0]:
      is_index = own[-1] == '__init__' or target[0] not in SHARED
      is_index |= own in ADDED
      assert is_index or target[1] in SHARED[own[0]], (own, target)
    else:
      assert LEVELS[target[0]] < level, f'{own} must not import {target}'


def test_every_module_has_a_level():
  names = {parts_of(p)[0] for p in FILES} - {'__init__'}
  assert names <= LEVELS.keys()


def test_config_dicts_stay_above_the_step():
  for path in FILES:
    if 'ml_collections' in path.read_text():
      assert parts_of(path)[0] in {
          'config', 'config_files', 'settings', 'networks', 'job',
          'compare',
      }  # fmt: skip


def test_pmap_lives_in_one_file():
  using = [p for p in FILES if 'jax.pmap(' in p.read_text()]
  assert [p.name for p in using] == ['parallel.py']


def functions(path: Path):
  """Yields names and lines of code; a docstring may be as long as it needs."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      length = node.end_lineno - node.lineno + 1
      first = node.body[0]
      if ast.get_docstring(node) is not None:
        length -= first.end_lineno - first.lineno + 1
      yield node.name, length


def test_size_budgets():
  """Functions <= 50 lines of code, modules <= 300 lines."""
  lengths = []
  for path in FILES:
    assert path.read_text().count('\n') <= 300, path
    for name, length in functions(path):
      assert length <= 50, f'{path}: {name} has {length} lines'
      lengths.append(length)
  assert sorted(lengths)[int(0.9 * len(lengths))] <= 30


def test_methods_need_jax_flax_and_optax_alone():
  """Library users import methods and attacks without our program's stack."""
  code = """
import sys
allowed = {'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'jax_robust_kd'}
forbidden = ['orbax', 'ml_collections', 'absl', 'tensorflow', 'grain',
             'tensorflow_datasets', 'rich', 'PIL']
class Block:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in blocked: raise ImportError(name)
blocked = {'ml_collections', 'tensorflow', 'grain', 'tensorflow_datasets',
           'PIL', 'array_record'}
sys.meta_path.insert(0, Block())
import jax_robust_kd.methods, jax_robust_kd.attacks
print(sorted(jax_robust_kd.methods.METHODS))
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert 'advfunmatch' in done.stdout


def test_every_method_file_is_listed():
  from jax_robust_kd.methods import METHODS

  files = {p.stem for p in (PACKAGE / 'methods').glob('*.py')}
  assert files - {'__init__'} - SHARED['methods'] == METHODS.keys()
