"""The pages of the site: every public name, every example, every link."""

import importlib
import importlib.util
import json
from pathlib import Path
import re
import shlex
from types import ModuleType

import pytest

import jax_robust_kd
from jax_robust_kd import (
  attacks,
  checks,
  commandline,
  losses,
  methods,
  models,
  settings,
)
from jax_robust_kd.__main__ import COMMANDS
from jax_robust_kd.methods import METHODS

ROOT = Path(__file__).parents[1]
API = ROOT / 'docs/api'
PUBLIC = {
  'package': jax_robust_kd,
  'attacks': attacks,
  'checks': checks,
  'methods': methods,
  'losses': losses,
  'models': models,
}


def load_site() -> ModuleType:
  spec = importlib.util.spec_from_file_location('site_', ROOT / 'docs/site.py')
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


site = load_site()


def public_names(module: ModuleType) -> set[str]:
  """Those of `__all__`, else what the package defines and does not hide."""
  if hasattr(module, '__all__'):
    return set(module.__all__)
  return {
    name
    for name, value in vars(module).items()
    if name[0] != '_'
    and not isinstance(value, ModuleType)
    and (
      getattr(value, '__module__', '').startswith(module.__name__)
      or name.isupper()
    )
  }


def blocks(text: str) -> list[str]:
  return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


def find(path: str) -> object:
  module, _, name = path.rpartition('.')
  return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize('page', PUBLIC)
def test_a_page_of_the_api_names_every_public_name(page):
  """By its docstring, or in words where it has none of its own."""
  text = (API / f'{page}.md').read_text()
  shown = [find(path) for path in re.findall(r'^::: (\S+)', text, re.MULTILINE)]
  code = '\n'.join(blocks(text))
  words = set(re.findall(r'`(\w+)`', text))
  for name in public_names(PUBLIC[page]):
    value = getattr(PUBLIC[page], name)
    assert name in words or any(value is each for each in shown), name
    if name not in METHODS and not isinstance(value, type):
      assert re.search(rf'\b{name}\b', code), f'{name} has no example'


@pytest.mark.parametrize('page', sorted(set(PUBLIC) - {'package'}))
def test_the_examples_of_the_api_run(page):
  namespace: dict = {}
  for block in blocks((API / f'{page}.md').read_text()):
    exec(block, namespace)


def test_every_link_of_every_page_leads_somewhere(tmp_path):
  site.collect(tmp_path)
  pages = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*.md')}
  assert pages == set(site.PAGES.values())
  nav = re.findall(
    r'^ +- .*: (\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.M
  )
  assert sorted(nav) == sorted(pages)


@pytest.mark.parametrize(
  'page, text, expected',
  [
    ('README.md', '[a](docs/attacks.md#x)', '[a](attacks.md#x)'),
    ('docs/attacks.md', '[a](../README.md)', '[a](index.md)'),
    ('docs/api/methods.md', '[a](../methods.md)', '[a](../methods.md)'),
    ('README.md', '![a](docs/cifar10.svg)', '![a](cifar10.svg)'),
    ('README.md', '[a](Makefile) [b](#c)', 'a [b](#c)'),
    ('README.md', '[a](https://b.org/c)', '[a](https://b.org/c)'),
    ('README.md', '`x[a](b)` [a](LICENSE)', '`x[a](b)` a'),
    ('README.md', '```\nx[a](b)\n```\n', '```\nx[a](b)\n```\n'),
  ],
)
def test_links_are_those_of_the_site(page, text, expected):
  assert site.relink(text, page) == expected


def test_a_link_that_leads_nowhere_is_an_error():
  with pytest.raises(site.LinkError, match='README.md: docs/none.md does not'):
    site.relink('[a](docs/none.md)', 'README.md')


def test_the_finished_site_is_checked(tmp_path):
  """Links, anchors, and that nothing comes from elsewhere."""
  (tmp_path / 'b.html').write_text('<h1 id="here">b</h1>')
  (tmp_path / 'a.html').write_text(
    '<a href="b.html#here"></a><a href="https://a.org"></a><a href="#"></a>'
  )
  assert site.check(tmp_path) == []
  (tmp_path / 'a.html').write_text(
    '<a href="b.html#there"></a><a href="c.html"></a>'
    '<script src="https://a.org/a.js"></script>'
  )
  (tmp_path / 'a.css').write_text('@import "//a.org/a.css"')
  wrong = ' '.join(site.check(tmp_path))
  assert len(site.check(tmp_path)) == 4
  for part in ('b.html#there', 'c.html', 'loads https://a.org/a.js', 'a.css'):
    assert part in wrong


def commands(page: str) -> list[list[str]]:
  """Returns the words of each command line of ours, without its first."""
  text = (ROOT / page).read_text()
  shell = '\n'.join(re.findall(r'```sh\n(.*?)```', text, re.DOTALL))
  lines = shell.replace('\\\n', ' ').splitlines()
  words = [shlex.split(line, comments=True) for line in lines]
  return [each[1:] for each in words if each and each[0] == 'jax-robust-kd']


@pytest.mark.parametrize(
  'page',
  ['README.md', 'docs/methods.md', 'docs/own_data.md', 'docs/teachers.md'],
)
def test_commands_of_the_pages_are_known(page, monkeypatch):
  """Commands, configs, flags and settings, without running anything."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(settings, 'read_run', lambda workdir, overrides: None)
  found = commands(page)
  assert found
  for name, *words in found:
    commandline.parse(COMMANDS[name], f'jax_robust_kd {name}', words)


def test_the_readme_is_short():
  assert (ROOT / 'README.md').read_text().count('\n') <= 150


def test_all_say_the_same_version():
  version = jax_robust_kd.__version__
  citation = (ROOT / 'CITATION.cff').read_text()
  date = re.search(r"date-released: '(.+)'", citation)
  assert date and f'\nversion: {version}\n' in citation
  assert (
    f'\n## [{version}] - {date[1]}\n' in (ROOT / 'CHANGELOG.md').read_text()
  )


def test_the_table_of_methods_has_them_all():
  page = (ROOT / 'docs/methods.md').read_text()
  assert set(re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE)) == set(METHODS)
  assert f'{len(METHODS)} methods' in (ROOT / 'README.md').read_text()


def test_the_tutorial_has_no_outputs():
  for cell in json.loads((ROOT / 'docs/tutorial.ipynb').read_text())['cells']:
    assert not cell.get('outputs') and not cell.get('execution_count')


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
  nbclient = pytest.importorskip('nbclient')
  import nbformat

  notebook = nbformat.read(ROOT / 'docs/tutorial.ipynb', 4)
  nbclient.NotebookClient(
    notebook, timeout=900, resources={'metadata': {'path': tmp_path}}
  ).execute()
  printed = [
    output.text
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
    if output.output_type == 'stream'
  ]
  robust, fragile = map(
    int, re.findall(r'(\d+)% under attack', ''.join(printed))
  )
  assert robust > fragile + 20
