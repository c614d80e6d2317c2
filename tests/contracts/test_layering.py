"""The design held by tests: who may import whom, and how long things are."""

import ast
from pathlib import Path
import re
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
  {'job', 'export'},
  {'evaluate_file'},
  {'main'},
  {'analysis', 'compare'},
  {'__main__'},
)
LEVELS = {name: level for level, names in enumerate(FLOORS) for name in names}
# What methods share; a method imports no other one, but `igdm` is added to any.
SHARED = {'inner_problems', 'outer_losses', 'features', 'options'}
SHARED |= {'input_gradient'}
ADDED = {'igdm'}
# Who may see a config: who reads and checks it, and whoever builds from it.
SEE_A_CONFIG = {
  'config',
  'config_files',
  'threat',
  'recipes',
  'workdir',
  'networks',
  'settings',
  'evaluation.run',
  'evaluation.results',
  'evaluation.corruptions',
  'training.build',
  'training.checks',
  'training.summary',
  'training.run',
  'classifier',
  'report.command',
  'job',
  'evaluate_file',
  'analysis',
  'compare',
}


def name_of(path: Path) -> str:
  """Returns 'methods.iad' for a file, 'methods' for the folder's index."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts).removesuffix('__init__').removesuffix('.')


MODULES = {name_of(path): path for path in FILES}


def imports(code: str) -> set[str]:
  """Returns the modules of ours that are imported anywhere in a file."""
  found = set()
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports name the package'
      names = [f'{node.module}.{a.name}' for a in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    for name in names:
      top, _, name = name.partition('.')
      if top == 'jax_robust_kd':
        found.add(name if name in MODULES else name.rpartition('.')[0])
  return found - {''}  # the package's own index


GRAPH = {name: imports(path.read_text()) for name, path in MODULES.items()}
GRAPH.pop('')  # loads what it is asked for, when it is asked


def find_circle(graph: dict[str, set[str]]) -> list[str]:
  """Returns modules each of which imports the next, the last the first."""
  done = set()

  def visit(name, path):
    if name in path:
      return path[path.index(name) :]
    if name not in done:
      for target in sorted(graph[name]):
        if circle := visit(target, [*path, name]):
          return circle
      done.add(name)
    return []

  return next(filter(None, (visit(name, []) for name in graph)), [])


def sees_a_config(code: str) -> bool:
  """Whether a file takes a `Config`, or a `c` that could be anything."""
  for node in ast.walk(ast.parse(code)):
    if isinstance(node, ast.arg) and node.annotation is not None:
      kind = ast.unparse(node.annotation)
      if 'Config' in kind or (node.arg == 'c' and kind == 'Any'):
        return True
    elif isinstance(node, ast.Import | ast.ImportFrom):
      module = getattr(node, 'module', '') or ''
      names = {module, *(a.name for a in node.names)}
      if any(n.split('.')[0] == 'ml_collections' for n in names):
        return True
      if module.startswith('jax_robust_kd.config') and 'Config' in names:
        return True
  return False


@pytest.mark.parametrize('name', GRAPH)
def test_imports_point_down(name):
  folder = name.split('.')[0]
  for target in GRAPH[name]:
    other = target.split('.')[0]
    if other != folder:
      assert LEVELS[other] < LEVELS[folder], f'{name} imports {target}'


def test_nothing_imports_in_a_circle():
  assert not find_circle(GRAPH)
  assert find_circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c']
  code = 'from jax_robust_kd.data import Split\nimport jax_robust_kd.core\n'
  assert imports(code) == {'data', 'core'}
  assert imports('def f():\n  from jax_robust_kd import job') == {'job'}


def test_floors_are_those_of_the_package():
  assert {name.split('.')[0] for name in GRAPH} == LEVELS.keys()


def test_design_draws_these_floors():
  """Two spaces part the names from what is said of them."""
  page = (PACKAGE.parent / 'DESIGN.md').read_text()
  drawn = re.findall(r'^\d+ +(\w+(?: \w+)*)', page, re.MULTILINE)
  assert [set(row.split()) for row in drawn] == list(FLOORS)


def test_methods_import_no_other_method():
  for name, targets in GRAPH.items():
    if name.startswith('methods.') and name.split('.')[1] not in ADDED:
      others = {t.removeprefix('methods.') for t in targets if 'methods' in t}
      assert others <= SHARED, f'{name} imports {others - SHARED}'


def test_configs_stay_with_those_who_build():
  seen = {n for n in GRAPH if sees_a_config(MODULES[n].read_text())}
  allowed = {n for n in GRAPH if {n, n.split('.')[0]} & SEE_A_CONFIG}
  assert seen <= allowed, f'{seen - allowed} must not see a config'
  heads = seen | {name.split('.')[0] for name in seen}
  assert heads >= SEE_A_CONFIG, f'{SEE_A_CONFIG - heads} sees none'


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
  """Modules <= 300 lines; functions <= 50 of code, nine of ten <= 30."""
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
  assert files - {'__init__'} - SHARED == METHODS.keys()
