"""Keeps the results of an evaluation on disk, for exactly what they belong to.

A result is read again only under the same identity. It covers what decides
flags (network, images, threat model, seed, code of the attacks, JAX) and
nothing else: neither docstrings, nor where the images were read from.
"""

import ast
import functools
import hashlib
from pathlib import Path
from typing import NamedTuple
import zipfile

from flax import linen as nn
import jax
import numpy as np

from jax_robust_kd import data
from jax_robust_kd.attacks.engine import NOWHERE, Store
from jax_robust_kd.attacks.stepwise import Stepwise
from jax_robust_kd.attacks.suites import ATTACKS, Job
from jax_robust_kd.core import RunError
from jax_robust_kd.runtime import faults, processes
from jax_robust_kd.runtime.imports import source_of

_ROOT = Path(__file__).parents[1]
# The code that decides flags.
_CODE = ('attacks', 'models', 'losses.py', 'core.py', 'evaluation/evaluate.py')
_CHUNK = 1024  # images that are digested at once


class Folder(NamedTuple):
  """A folder of results, a file for each attack and pool of images.

  Attributes:
    path: the folder, which the processes of a run share; None keeps nothing.
    identity: from `identity`; a file of another one is computed again.
    keep_adv: whether adversarial images are kept, and returned.
  """

  path: Path | None = None
  identity: str = ''
  keep_adv: bool = True


NO_FOLDER = Folder()


def open_store(folder: Folder, batches: str, jobs: list[Job]) -> Store:
  """Opens a folder, where the processes of a run share the work.

  Args:
    folder: the folder and the identity.
    batches: from `Runner.identity`; rounding differs with the batch size.
    jobs: what will run; the source of attacks of one's own counts, too.

  Raises:
    RunError: the folder cannot be written.
  """
  path, _, keep_adv = folder
  if path is None:
    return NOWHERE._replace(keep_adv=keep_adv)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _not_written(path, error) from error
  sources = {job.column: _own_source(job) for job in jobs}

  def identity_of(unit: str) -> str:
    return f'{folder.identity} {batches}' + sources[unit.rpartition('-')[0]]

  return Store(
    lambda unit: _load(path, unit, identity_of(unit)),
    lambda unit, arrays: _save(path, unit, identity_of(unit), arrays),
    keep_adv,
    processes.owns,
    processes.barrier,
  )


def _own_source(job: Job) -> str:
  """Returns a digest of an attack that is none of this package, or ''."""
  attack = job.attack
  code = attack.step if isinstance(attack, Stepwise) else attack
  if attack is None or attack in ATTACKS.values():
    return ''
  return own_sha256(code)


def own_sha256(code: object) -> str:
  """Returns a digest of the file of a function or class of one's own."""
  return ' ' + hashlib.sha256(source_of(code).encode()).hexdigest()


def model_identity(module: nn.Module | None) -> str:
  """Returns the fields of a model, and the source of one of one's own."""
  kind = type(module)
  ours = kind.__module__.startswith('jax_robust_kd.')
  return str(module) + ('' if ours else own_sha256(kind))


def _not_written(path: Path, error: OSError) -> RunError:
  return RunError(f'{path} cannot be written: {error.strerror}')


def _load(folder: Path, unit: str, identity: str) -> dict | None:
  try:
    with np.load(folder / f'{unit}.npz') as file:
      arrays = dict(file)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    return None  # missing or damaged: it is computed again
  return arrays if str(arrays.pop('identity', '')) == identity else None


def _save(folder: Path, unit: str, identity: str, arrays: dict) -> None:
  path = folder / f'{unit}.npz'
  temporary = path.with_name('unfinished.' + path.name)
  faults.point('keep', unit=unit)
  try:
    np.savez(temporary, identity=np.array(identity), **arrays)
    temporary.replace(path)
  except OSError as error:
    raise _not_written(path, error) from error
  faults.point('kept', unit=unit)


def identity(*settings: object) -> str:
  """Returns a digest of settings, of the code that decides flags and of JAX.

  Args:
    *settings: all else that decides flags, such as the digests of the network
      and of the images, the budget and the seed, in a fixed order.
  """
  text = [*map(str, settings), code_sha256(_ROOT), jax.__version__, _platform()]
  return hashlib.sha256('\n'.join(text).encode()).hexdigest()


def _platform() -> str:
  return f'{jax.default_backend()} {jax.local_devices()[0].device_kind}'


def data_sha256(split: data.Split) -> str:
  """Returns the digest of the shape, the images and the labels, in this order.

  Images are read in chunks, as those of a set on disk may not fit into memory.
  """
  image, index = split.image, np.arange(len(split.label))
  digest = hashlib.sha256(f'{image.shape} {image.dtype}'.encode())
  for first in range(0, len(index), _CHUNK):
    chunk = np.asarray(image[index[first : first + _CHUNK]])
    digest.update(chunk.tobytes())
  digest.update(np.asarray(split.label[index]).astype(np.int32).tobytes())
  return digest.hexdigest()


@functools.cache
def code_sha256(root: Path) -> str:
  """Returns the digest of a package's code that decides flags."""
  digest = hashlib.sha256()
  for name in _CODE:
    path = root / name
    for file in sorted(path.rglob('*.py')) if path.is_dir() else [path]:
      digest.update(f'{file.relative_to(root)}\n'.encode())
      digest.update(without_prose(file.read_text('utf-8')).encode())
  return digest.hexdigest()


def without_prose(source: str) -> str:
  """Returns code without comments, docstrings and layout, as a syntax tree."""
  tree = ast.parse(source)
  for node in ast.walk(tree):
    body = getattr(node, 'body', None)
    if isinstance(body, list):
      node.body = [line for line in body if not _is_text(line)]  # type: ignore
  return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
  """Returns whether a statement is a string alone, such as a docstring."""
  return (
    isinstance(node, ast.Expr)
    and isinstance(node.value, ast.Constant)
    and isinstance(node.value.value, str)
  )
