"""Checkpoints by Orbax: whole states, verified when read.

Two folders, each holding steps: `last`, to resume from, and `best`, chosen on
validation images. Orbax writes a step under another name and renames it, so a
killed save leaves nothing behind that looks whole; but it restores flipped
bytes without a word. A digest of every leaf is therefore written with each
step and checked when it is read.
"""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import hashlib
import json
from pathlib import Path

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from jax_robust_kd.core import PyTree, RunError, UserError
from jax_robust_kd.runtime import faults
from jax_robust_kd.runtime.console import say
from jax_robust_kd.runtime.processes import to_global

# Orbax raises its errors, and prints them with ten tracebacks each before.
logging.set_verbosity(logging.FATAL)


def open_folder(workdir: Path, name: str, keep: int) -> ocp.CheckpointManager:
  """Opens `workdir/checkpoints/<name>` for asynchronous saving.

  Args:
    workdir: of the run.
    name: 'last' or 'best'.
    keep: newest steps that are kept.
  """
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, cleanup_tmp_directories=True
  )
  folder = (workdir / 'checkpoints' / name).absolute()
  return ocp.CheckpointManager(
    folder, options=options, item_handlers=_handlers()
  )


def _handlers() -> dict:
  return {
    'state': ocp.StandardCheckpointHandler(),
    'record': ocp.JsonCheckpointHandler(),
  }


def read(
  workdir: Path, name: str, template: PyTree | None = None
) -> tuple[PyTree, dict] | None:
  """Reads the newest good step of another run, without touching its folder.

  Args:
    workdir: of that run, which may be saving at this moment.
    name: 'last' or 'best'.
    template: as for `restore`.
  """
  path = (workdir / 'checkpoints' / name).absolute()
  if not path.is_dir():
    return None
  options = ocp.CheckpointManagerOptions(read_only=True)
  with ocp.CheckpointManager(
    path, options=options, item_handlers=_handlers()
  ) as folder:
    return restore(folder, template)


def digests(tree: PyTree) -> dict[str, str]:
  """Returns SHA-256 of each leaf's type, shape and bytes, by its path."""
  named, _ = jax.tree_util.tree_flatten_with_path(tree)
  with ThreadPoolExecutor() as pool:  # hashing lets other threads run
    hashes = pool.map(_digest, [leaf for _, leaf in named])
  return {
    jax.tree_util.keystr(path): digest
    for (path, _), digest in zip(named, hashes, strict=True)
  }


def _digest(leaf) -> str:
  array = np.asarray(leaf)
  head = f'{array.dtype}{array.shape}'.encode()
  return hashlib.sha256(head + array.tobytes()).hexdigest()


def _record_sha256(record: dict) -> str:
  text = json.dumps(record, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def tree_sha256(tree: PyTree) -> str:
  """Returns one SHA-256 for a whole tree of weights."""
  lines = sorted(f'{k} {v}' for k, v in digests(tree).items())
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def save(
  folder: ocp.CheckpointManager, step: int, state: PyTree, metrics: dict
) -> None:
  """Starts writing a step; returns before it is on disk.

  Args:
    folder: from `open_folder`.
    step: optimizer steps done.
    state: NumPy arrays that nobody will change, the same on all processes.
    metrics: numbers to store beside it.

  Raises:
    RunError: an earlier or this save failed (full or missing disk).
  """
  faults.point('save', folder=folder.directory.name, step=step)
  record = {**metrics, 'digests': digests(state)}
  record['sha256'] = _record_sha256(record)
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(to_global(state)),
    record=ocp.args.JsonSave(record),
  )
  try:
    # Orbax makes it only once, and waits for ever where it cannot be made.
    Path(folder.directory).mkdir(parents=True, exist_ok=True)
    # Left by a run that went on from an older step: damaged, or of the seconds
    # before it was killed. Orbax would silently not write before the newest.
    for newer in [s for s in folder.all_steps() if s >= step]:
      folder.delete(newer)
    folder.save(step, args=args)
  except (OSError, ValueError) as error:
    raise RunError(_save_failed(folder, error)) from error


def wait(folder: ocp.CheckpointManager) -> None:
  """Waits until everything started is on disk.

  Raises:
    RunError: it could not be written.
  """
  try:
    folder.wait_until_finished()
  except (OSError, ValueError) as error:
    raise RunError(_save_failed(folder, error)) from error


def close(folder: ocp.CheckpointManager) -> None:
  """Closes a folder. What could not be written was told by `wait`."""
  with contextlib.suppress(OSError, ValueError):
    folder.close()


def _save_failed(folder: ocp.CheckpointManager, error: Exception) -> str:
  """The step is left out: Orbax may raise when the next one is saved."""
  whole = [s for s in folder.all_steps() if _is_there(folder, s)]
  summary = f'step {max(whole)} is whole' if whole else 'none is whole'
  reason = str(error).strip().splitlines()[-1]
  return (
    f'could not save a checkpoint in {folder.directory} ({summary}): {reason}'
  )


def _is_there(folder: ocp.CheckpointManager, step: int) -> bool:
  """Asks the disk: Orbax remembers steps that somebody has removed."""
  return (Path(folder.directory) / str(step)).is_dir()


def restore(
  folder: ocp.CheckpointManager, template: PyTree | None
) -> tuple[PyTree, dict] | None:
  """Returns the newest step that verifies and its record, or None if empty.

  Args:
    folder: from `open_folder`.
    template: tree of arrays with the expected shapes, or None to take what
      is there as nested dicts of NumPy arrays.

  Raises:
    UserError: there are steps, but none verifies.
  """
  steps = sorted(folder.all_steps(), reverse=True)
  for step in steps:
    try:
      return _restore_step(folder, step, template)
    except Exception as error:  # Orbax raises many kinds on damaged files
      reason = (str(error).strip() or type(error).__name__).splitlines()[0]
      say(f'checkpoint {folder.directory}/{step} is damaged: {reason[:200]}')
  if not steps:
    return None
  raise UserError(
    f'no checkpoint in {folder.directory} can be read (steps {steps}); '
    'restore the folder from a copy or choose a new --workdir'
  )


def _restore_step(folder, step: int, template):
  if template is None:
    # Without one, Orbax asks for the devices that the step was saved on.
    tree = folder.item_metadata(step).state
    template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
  template = jax.tree.map(np.asarray, template)
  restored = folder.restore(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(template),
      record=ocp.args.JsonRestore(),
    ),
  )
  state = jax.tree.map(np.asarray, restored.state)
  record = dict(restored.record)
  if record.pop('sha256', None) not in (None, _record_sha256(record)):
    raise ValueError('its record does not match its digest')
  expected = sorted(record.pop('digests').values())
  if sorted(digests(state).values()) != expected:
    raise ValueError('its content does not match its digests')
  return state, record
