"""Published teachers by their names in RobustBench's model zoo."""

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

from jax_robust_kd.core import UserError

VARIABLE = 'JAX_ROBUST_KD_ZOO'
PREFIX = 'zoo:'
_LIST = Path(__file__).parents[1] / 'models/teachers.json'
_ENDINGS = ('.pt', '.pth', '.safetensors', '.npz')


class Known(NamedTuple):
  """A published network.

  Attributes:
    name: 'cifar10/Linf/NAME', as RobustBench lays its files out.
    arch: as `recognize.parse` reads it.
    mean: of the normalization; () for none, or that of the file.
    std: likewise.
    clean: published clean accuracy in percent.
    autoattack: published accuracy under AutoAttack.
    epsilon: radius of that attack.
    drive: name of the file at Google Drive.
    entry: part of the file that is meant, '' where it has one.
  """

  name: str
  arch: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  clean: float
  autoattack: float
  epsilon: str
  drive: str
  entry: str = ''

  @property
  def dataset(self) -> str:
    """Name of the data set that it was trained on."""
    return self.name.partition('/')[0]


@functools.cache
def known() -> dict[str, Known]:
  """Returns all published networks that this library has the models of."""
  listed = json.loads(_LIST.read_text())
  return {
    name: Known(
      name, **{**about, 'mean': (*about['mean'],), 'std': (*about['std'],)}
    )
    for name, about in listed.items()
  }


def find(name: str, dataset: str = '') -> Known:
  """Finds a published network.

  Args:
    name: 'NAME', 'Linf/NAME' or 'cifar10/Linf/NAME'; of several the one of the
      data set is taken, and of those the first, which is l_inf.
    dataset: name of the data set in use.

  Raises:
    UserError: there is none.
  """
  found = [k for k in known().values() if f'/{k.name}'.endswith(f'/{name}')]
  if not found:
    near = sorted(
      {k.rpartition('/')[2] for k in known() if name.lower()[:5] in k.lower()}
    )
    hint = ', '.join(near) or 'docs/teachers.md lists what there is'
    raise UserError(f'{PREFIX}{name} is unknown; near it: {hint}')
  return min(found, key=lambda k: k.dataset != dataset)


def locate(teacher: Known, folder: str = '') -> str:
  """Returns the file of a published network, 'FILE:ENTRY' where one is meant.

  Args:
    teacher: from `find`.
    folder: of the files; '' is that of the environment variable.

  Raises:
    UserError: it is not there, with what to download and where to put it.
  """
  folder = folder or os.environ.get(VARIABLE, '')
  address = f'https://drive.google.com/uc?id={teacher.drive}'
  short = teacher.name.rpartition('/')[2]
  if not folder:
    raise UserError(
      f'{PREFIX}{short} needs the folder of your files: set {VARIABLE}=DIR and '
      f'save {address} as DIR/{teacher.name}.pt'
    )
  root = Path(folder).expanduser()
  for stem in (teacher.name, short):
    for ending in _ENDINGS:
      if (root / f'{stem}{ending}').is_file():
        part = f':{teacher.entry}' if teacher.entry and 'pt' in ending else ''
        return f'{root / stem}{ending}{part}'
  raise UserError(
    f'{PREFIX}{short} is not there: download {address} and save it as '
    f'{root / teacher.name}.pt'
  )
