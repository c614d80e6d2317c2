"""The pages of the repository as a site: collects, builds and checks it.

  python docs/site.py

writes build/site. Nothing is fetched, and the finished site loads nothing from
elsewhere. A link to a file that is no page becomes plain text; one that leads
nowhere ends the program.
"""

from html.parser import HTMLParser
import json
import os
from pathlib import Path, PurePosixPath
import re
import shutil
import subprocess
import sys

ROOT = Path(__file__).parent.parent
BUILD = ROOT / 'build'

# Page of the repository -> page of the site.
PAGES = {
  'README.md': 'index.md',
  'DESIGN.md': 'design.md',
  'CONTRIBUTING.md': 'contributing.md',
  'CHANGELOG.md': 'changelog.md',
  'SECURITY.md': 'security.md',
  'CODE_OF_CONDUCT.md': 'conduct.md',
  'benchmarks/README.md': 'benchmarks.md',
  'configs/README.md': 'configs.md',
  'launch/README.md': 'launch.md',
  'jax_robust_kd/methods/README.md': 'contract.md',
  'docs/tutorial.ipynb': 'tutorial.md',
}
PAGES |= {
  str(path.relative_to(ROOT)): str(path.relative_to(ROOT / 'docs'))
  for path in sorted((ROOT / 'docs').rglob('*.md'))
}
# A link or an image; code is matched too, so that it is not searched.
LINK = re.compile(r'`[^`]*`|(!?)\[([^\]]*)\]\(([^()\s]+)\)')


class LinkError(Exception):
  """A link that leads nowhere."""


def as_markdown(notebook: str) -> str:
  """Returns the cells of a notebook, without what they have printed."""
  parts = []
  for cell in json.loads(notebook)['cells']:
    text = ''.join(cell['source'])
    is_code = cell['cell_type'] == 'code'
    parts.append(f'```python\n{text}\n```' if is_code else text)
  return '\n\n'.join(parts) + '\n'


def relink(text: str, page: str) -> str:
  """Returns a page's text with its links as the site has them.

  Args:
    text: Markdown.
    page: its path in the repository.

  Raises:
    LinkError: a link leads nowhere.
  """

  def replace(match: re.Match) -> str:
    image, words, target = match.groups()
    if target is None:
      return match[0]
    file, _, anchor = target.partition('#')
    if not file or re.match(r'[a-z]+:', target):
      return match[0]
    path = os.path.normpath(PurePosixPath(page).parent / file)
    if not (ROOT / path).exists():
      raise LinkError(f'{page}: {target} does not exist')
    if path not in PAGES and not image:
      return words
    new = PAGES.get(path, PurePosixPath(path).name)
    new = os.path.relpath(new, PurePosixPath(PAGES[page]).parent)
    return f'{image}[{words}]({new}{"#" if anchor else ""}{anchor})'

  pieces = re.split(r'(^```.*?^```)', text, flags=re.MULTILINE | re.DOTALL)
  pieces[::2] = [LINK.sub(replace, piece) for piece in pieces[::2]]
  return ''.join(pieces)


def collect(out: Path) -> None:
  """Writes all pages and pictures to a folder.

  Raises:
    LinkError: a link leads nowhere.
  """
  for page, new in PAGES.items():
    text = (ROOT / page).read_text()
    if page.endswith('.ipynb'):
      text = as_markdown(text)
    (out / new).parent.mkdir(parents=True, exist_ok=True)
    (out / new).write_text(relink(text, page))
  for path in (ROOT / 'docs').iterdir():
    if path.suffix in ('.css', '.png', '.svg'):
      shutil.copy(path, out)


class Page(HTMLParser):
  """Names and links of a page of the site.

  Attributes:
    names: what a link can point to.
    links: where the page's links lead.
    loads: what a browser loads with it.
  """

  def __init__(self, text: str):
    super().__init__()
    self.names, self.links, self.loads = {''}, set(), set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.names |= {values[key] for key in ('id', 'name') if values.get(key)}
    links = self.links if tag == 'a' else self.loads
    links |= {values[key] for key in ('href', 'src') if values.get(key)}


def check(site: Path) -> list[str]:
  """Returns a sentence for each link that leads nowhere or outside."""
  pages = {path: Page(path.read_text()) for path in site.rglob('*.html')}
  pages.pop(site / '404.html', None)  # its links are those of a server's root
  wrong = []
  for path, page in pages.items():
    for target in sorted(page.links | page.loads):
      if re.match(r'[a-z]+:|//', target):
        if target in page.loads:
          wrong.append(f'{path}: loads {target}')
        continue
      file, _, name = target.partition('#')
      other = Path(os.path.normpath(path.parent / file)) if file else path
      if other.is_dir():
        other = other / 'index.html'
      known = pages[other].names if other in pages else {''}
      if not other.exists() or name not in known:
        wrong.append(f'{path}: {target} does not exist')
  for path in site.rglob('*.css'):
    if re.search(r'(url\(|@import)\s*["\']?(https?:)?//', path.read_text()):
      wrong.append(f'{path}: loads from elsewhere')
  return wrong


def main() -> None:
  """Builds the site.

  Raises:
    SystemExit: with a sentence, where something is wrong.
  """
  for folder in ('docs', 'site'):
    shutil.rmtree(BUILD / folder, ignore_errors=True)
  try:
    collect(BUILD / 'docs')
  except LinkError as error:
    sys.exit(str(error))
  command = [sys.executable, '-m', 'zensical', 'build', '--strict', '--clean']
  code = subprocess.run(command, cwd=ROOT).returncode
  if code:
    sys.exit(code)
  wrong = check(BUILD / 'site')
  print(*wrong, sep='\n', end='\n' if wrong else '')
  if wrong:
    sys.exit(f'{len(wrong)} links are wrong')
  print(f'{BUILD / "site/index.html"}')


if __name__ == '__main__':
  main()
