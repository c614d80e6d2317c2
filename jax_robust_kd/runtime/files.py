"""metrics.jsonl: one JSON object a line, a pure function of the config.

Of several processes only the first one writes.

Wall-clock figures go to speed.jsonl, so that a run that was killed and started
again leaves the same metrics.jsonl as one that was not.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path

from jax_robust_kd.core import RunError, UserError
from jax_robust_kd.runtime import faults
from jax_robust_kd.runtime.processes import is_first


def write_json(path: Path, content) -> None:
  """Writes a JSON file that is either whole or not there.

  Raises:
    RunError: it cannot be written (full disk).
  """
  faults.point('write', path=path)
  _replace(path, json.dumps(content, indent=2) + '\n')


def _replace(path: Path, text: str) -> None:
  if not is_first():
    return
  temporary = path.with_name(path.name + '.tmp')
  try:
    temporary.write_text(text)
    os.replace(temporary, path)
  except OSError as error:
    raise RunError(_cannot_write(path, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
  return f'{path} cannot be written: {error.strerror}'


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
  """Appends one line.

  Raises:
    RunError: it cannot be written (full disk).
  """
  if not is_first():
    return
  faults.point('log', path=path, record=record)
  try:
    with path.open('a') as file:
      file.write(json.dumps(record) + '\n')
  except OSError as error:
    raise RunError(_cannot_write(path, error)) from error
  faults.point('logged', path=path, record=record)


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
  records = [r for r in read_lines(path) if r['step'] <= step]
  _replace(path, ''.join(json.dumps(r) + '\n' for r in records))


def tensorboard(folder: Path) -> Callable[[dict], None]:
  """Returns what writes a line of metrics for TensorBoard.

  It does nothing when tensorboardX is not installed.
  """
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    return lambda line: None
  if not is_first():
    return lambda line: None
  writer = SummaryWriter(str(folder))

  def write(line: dict) -> None:
    for name, value in line.items():
      writer.add_scalar(name, value, line['step'])

  return write
