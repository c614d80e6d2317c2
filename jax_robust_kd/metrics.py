"""metrics.jsonl: one JSON object a line, a pure function of the config.

Wall-clock figures go to speed.jsonl, so that a run that was killed and started
again leaves the same metrics.jsonl as one that was not.
"""

import json
import os
from pathlib import Path

from jax_robust_kd.core import UserError


def write_json(path: Path, content) -> None:
  """Writes a JSON file that is either whole or not there."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(json.dumps(content, indent=2) + '\n')
  os.replace(temporary, path)


def read_json(path: Path) -> dict:
  """Reads a JSON file.

  Raises:
    UserError: it is missing or damaged.
  """
  try:
    return json.loads(path.read_text())
  except (OSError, json.JSONDecodeError) as error:
    reason = str(error)
    raise UserError(f'{path} cannot be read: {reason}') from None


def append(path: Path, record: dict) -> None:
  """Appends one line."""
  with path.open('a') as file:
    file.write(json.dumps(record) + '\n')


def read_lines(path: Path) -> list[dict]:
  """Returns all whole lines; a last line cut by a kill is left out."""
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def truncate(path: Path, step: int) -> None:
  """Forgets what was logged after `step`, before a run goes on from there."""
  kept = [r for r in read_lines(path) if r['step'] <= step]
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(''.join(json.dumps(r) + '\n' for r in kept))
  os.replace(temporary, path)


def tensorboard(folder: Path):
  """Returns a tensorboardX writer, or None when that is not installed."""
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return None
  return SummaryWriter(str(folder))
