"""The entries of a comparison as they are written: labels and overrides."""

import difflib
from pathlib import Path
import re
from typing import NamedTuple

from jax_robust_kd.core import UserError


class Entry(NamedTuple):
  """One row of a comparison: `[label=]FILE[:ARGUMENT][;KEY=VALUE]...`.

  Attributes:
    label: what to call it, '' where none was given.
    spec: config file and argument, such as 'configs/ard.py:cifar10'.
    overrides: settings of this entry alone, such as 'method.alpha=0.5'.
  """

  label: str
  spec: str
  overrides: tuple[str, ...] = ()


def split_outside(text: str, mark: str) -> list[str]:
  """Splits at a mark, but not within brackets or quotes; empty parts go."""
  parts, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    else:
      depth += (letter in '([') - (letter in ')]')
      if letter == mark and depth <= 0:
        parts.append('')
        continue
    parts[-1] += letter
  return [part.strip() for part in parts if part.strip()]


def parse_entry(text: str) -> Entry:
  """Reads one entry.

  Raises:
    UserError: it has no file, an override is no KEY=VALUE, or its label has
      letters that a folder or a table cannot take.
  """
  head, *overrides = split_outside(text, ';')
  label, equals, spec = (part.strip() for part in head.rpartition('='))
  if not spec or (equals and not label):
    raise UserError(
      f'entry {text!r} of --configs: write [label=]FILE[:ARGUMENT][;KEY=VALUE]'
    )
  if label and not re.fullmatch(r'[\w][\w .+()-]*', label):
    raise UserError(
      f'label {label!r} of --configs: use letters, digits, spaces and ._+-()'
    )
  for override in overrides:
    key, equals, _ = override.partition('=')
    if not equals or not re.fullmatch(r'\w+(\.\w+)*', key.strip()):
      raise UserError(
        f'entry {text!r} of --configs: {override!r} is not KEY=VALUE, such as '
        'attack.num_steps=3'
      )
  return Entry(label, spec, tuple(overrides))


def read_entries(text: str) -> list[Entry]:
  """Reads --configs: entries with commas between, or files of them.

  Raises:
    UserError: there are none, one is badly written, or a file is not there.
  """
  parts: list[str] = []
  for part in split_outside(text, ','):
    # An argument may have commas; an entry names a file.
    if parts and '.py' not in part and not part.startswith('@'):
      parts[-1] += f',{part}'
    else:
      parts.append(part)
  entries = []
  for part in parts:
    if not part.startswith('@'):
      entries.append(parse_entry(part))
      continue
    try:
      lines = Path(part[1:]).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f'--configs {part} cannot be read: {error}') from None
    lines = [(' ' + line).partition(' #')[0].strip() for line in lines]
    entries += [parse_entry(line) for line in lines if line]
  if not entries:
    raise UserError(f'--configs {text!r} names no config')
  return entries


def parse_seeds(text: str) -> list[int]:
  """Reads '0,1,2'.

  Raises:
    UserError: not whole numbers from 0, or the same one twice.
  """
  words = [word.strip() for word in text.split(',')]
  if not all(word.isascii() and word.isdigit() for word in words):
    raise UserError(f'--seeds {text!r}: write whole numbers like 0,1,2')
  seeds = [int(word) for word in words]
  if len(set(seeds)) < len(seeds):
    raise UserError(f'--seeds {text!r} names a seed twice')
  return seeds


def folder_name(label: str) -> str:
  """Returns what the folder of a label is called."""
  return re.sub(r'[^\w.+()-]+', '_', label).strip('_')


def check_labels(labels: list[str]) -> None:
  """Refuses labels of which two would share a folder.

  Raises:
    UserError: there are two.
  """
  seen: dict[str, str] = {}
  for label in labels:
    name = folder_name(label).casefold()
    if name in seen:
      raise UserError(
        f'two entries of --configs are called {seen[name]!r} and {label!r}; '
        'write another label in front of one: label=FILE'
      )
    seen[name] = label


def check_key(where: str, key: str, known: list[str]) -> None:
  """Refuses a setting that a config does not have.

  Raises:
    UserError: with the setting that was probably meant.
  """
  if key in known:
    return
  near = difflib.get_close_matches(key, known, 1, cutoff=0.75)
  group = [k for k in known if k.startswith(key.rpartition('.')[0] + '.')]
  if near:
    hint = f'did you mean {near[0]}?'
  else:
    hint = f'there are: {", ".join(group or known)}'
  raise UserError(f'{where}: {key} is not a setting of its config; {hint}')
