"""interop/zoo.py: published teachers by name."""

import pytest

from jax_robust_kd import models
from jax_robust_kd.core import UserError
from jax_robust_kd.interop import recognize, zoo

CLASSES = {'cifar10': 10, 'cifar100': 100}
NAME = 'Rebuffi2021Fixing_28_10_cutmix_ddpm'


def test_every_teacher_of_the_list_is_one_that_can_be_built():
  assert len(zoo.known()) > 100
  for teacher in zoo.known().values():
    found = recognize.parse(teacher.arch, CLASSES[teacher.dataset])
    fields = {**found.fields, 'mean': teacher.mean, 'std': teacher.std}
    models.build(found.name, found.num_classes, fields)
    assert 50 < teacher.clean < 100 and 0 <= teacher.autoattack < 90
    assert len(teacher.mean) == len(teacher.std) in (0, 3)


def test_a_name_alone_is_the_one_of_the_data_set():
  assert zoo.find(NAME).name == f'cifar10/Linf/{NAME}'
  assert zoo.find(NAME, 'cifar100').name == f'cifar100/Linf/{NAME}'
  assert zoo.find(f'L2/{NAME}').epsilon == '0.5'
  assert zoo.find(NAME).clean == 87.33
  with pytest.raises(UserError, match='near it: .*Rebuffi2021Fixing_R18_ddpm'):
    zoo.find('Rebuffi2021')
  with pytest.raises(UserError, match='docs/teachers.md'):
    zoo.find('nobody')


def test_the_file_is_found_or_said_where_to_put_it(tmp_path, monkeypatch):
  teacher = zoo.find('Andriushchenko2020Understanding')
  monkeypatch.delenv(zoo.VARIABLE, raising=False)
  with pytest.raises(UserError, match='set JAX_ROBUST_KD_ZOO=DIR and save htt'):
    zoo.locate(teacher)
  monkeypatch.setenv(zoo.VARIABLE, str(tmp_path))
  path = tmp_path / f'{teacher.name}.pt'
  with pytest.raises(UserError, match=f'{teacher.drive} and save it as {path}'):
    zoo.locate(teacher)
  (tmp_path / 'Andriushchenko2020Understanding.npz').touch()
  assert zoo.locate(teacher).endswith('Understanding.npz')
  path.parent.mkdir(parents=True)
  path.touch()
  assert zoo.locate(teacher) == f'{path}:last'
