"""The examples of the documentation run as they stand."""

from pathlib import Path
import re

import pytest

DOCS = Path(__file__).parent.parent / 'docs'


def blocks(path: Path) -> list[str]:
  return re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_page_on_attacks():
  namespace: dict = {}
  code = blocks(DOCS / 'attacks.md')
  assert len(code) == 4
  for block in code:
    exec(block, namespace)
  assert namespace['adv'].shape == namespace['image'].shape
  assert namespace['found'].correct['robust'].shape == (32,)
  assert {check.level for check in namespace['report']} <= {
    'green', 'amber', 'red',
  }  # fmt: skip
