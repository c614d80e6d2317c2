"""Named points of the program, at which tests make it fail.

A point does nothing unless somebody watches. Tests kill a run at
`point('keep', unit='pgd-20-0')` wherever that line lies, so moving code breaks
no test.
"""

from collections.abc import Callable
from typing import Any

_watchers: list[Callable[..., None]] = []


def watch(watcher: Callable[..., None]) -> None:
  """Calls `watcher(name, **facts)` at every point from here on."""
  _watchers.append(watcher)


def point(name: str, **facts: Any) -> None:
  """Tells those who watch that the program is here.

  Args:
    name: of the point.
    **facts: what it is about to do, or has done.
  """
  for watcher in _watchers:
    watcher(name, **facts)
