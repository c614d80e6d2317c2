"""Every mistake of a user's: one clear sentence, exit code 2, no compile."""

import importlib
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_robust_kd import main
from jax_robust_kd.config import load_config
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.workdir import claim_workdir

ROOT = Path(__file__).parents[2]
PGD_AT = f'{ROOT}/configs/pgd_at.py:digits'
RSLAD = f'{ROOT}/configs/rslad.py:digits'


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
  """Returns a function that runs a command line and returns its one sentence.

  It fails if anything is compiled before the refusal.
  """

  importlib.import_module(
    'jax_robust_kd.job'
  )  # its decorators are no compiling

  def no_compile(*args, **kwargs):
    raise AssertionError('something was compiled before the refusal')

  def run(*flags, config=PGD_AT, workdir=None):
    monkeypatch.setattr(jax, 'pmap', no_compile)
    monkeypatch.setattr(jax, 'jit', no_compile)
    argv = ['main', f'--config={config}']
    argv += [f'--workdir={workdir or tmp_path / "run"}', *flags]
    code = main.main(argv)
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith('error: ') and error.count('\n') == 1, error
    assert 'Traceback' not in error
    return error

  return run


# flags, words that the sentence must hold: the field, the value, the remedy
CASES = {
    'wrong_key': (
        ['--config.train_attack.num_step=3'],
        ['num_step', 'num_steps'],
    ),
    'wrong_group': (
        ['--config.train_atack.num_steps=3'],
        ['train_atack', 'train_attack'],
    ),
    'wrong_type': (
        ['--config.train_attack.num_steps=many'],
        ['num_steps', 'many'],
    ),
    'wrong_method_argument': (
        ['--config.method.name=trades', '--config.method.betta=6'],
        ['betta'],
    ),
    'unknown_method': (
        ['--config.method.name=pgdat'], ['method.name', 'pgdat', 'pgd_at'],
    ),
    'unknown_model': (
        ['--config.student.name=small_resnt'], ['small_resnt', 'small_resnet'],
    ),
    'epsilon_in_grey_levels': (
        ['--config.train_attack.epsilon=8'], ['train_attack.epsilon', '8/255'],
    ),
    'epsilon_rounded': (
        ['--config.train_attack.epsilon=0.031'],
        ['0.031', '7.905/255', '8/255', '31/1000'],
    ),
    'epsilon_negative': (
        ['--config.train_attack.epsilon=-1/255'],
        ['train_attack.epsilon', 'positive'],
    ),
    'epsilon_text': (
        ['--config.train_attack.epsilon=big'],
        ['train_attack.epsilon', 'big', '8/255'],
    ),
    'step_above_epsilon': (
        ['--config.train_attack.step_size=0.2'],
        ['train_attack.step_size=0.2', 'train_attack.epsilon=2/16', 'swapped'],
    ),
    'batch_over_devices': (
        ['--config.data.batch_size=63'], ['data.batch_size=63', '2 devices'],
    ),
    'eval_batch_over_devices': (
        ['--config.eval.batch_size=63'], ['eval.batch_size=63', '2 devices'],
    ),
    'batch_larger_than_data': (
        ['--config.data.batch_size=4000'], ['data.batch_size=4000', '1100'],
    ),
    'no_teacher': (
        ['--config.method.name=rslad'], ['rslad', 'teacher.checkpoint'],
    ),
    'teacher_is_no_run': (
        ['--config.method.name=kd', '--config.teacher.checkpoint=nowhere'],
        ['nowhere', 'config.json'],
    ),
    'unknown_augmentation': (
        ['--config=configs/advfunmatch.py:digits,cutot'], ['cutot', 'cutout'],
    ),
    'unknown_attack': (
        ["--config.eval.suite=('pgdd-20',)"], ['pgdd-20', 'pgd'],
    ),
    'no_attack': (
        ['--config.eval.suite=()'], ['eval.suite', 'attacks nothing', 'pgd-20'],
    ),
    'no_attack_in_l1': (
        ['--config.eval.norm=l1', "--config.eval.suite=('apgd_ce',)"],
        ['validation.attack', 'pgd-10', 'l1', 'apgd_ce'],
    ),
    'no_suite_in_l1': (
        ['--config.eval.norm=l1', '--config.validation.attack=apgd_ce-10'],
        ['eval.suite', 'fgsm', 'l1', 'autoattack'],
    ),
    'suite_validates': (
        ['--config.validation.attack=autoattack'],
        ['validation.attack', 'autoattack'],
    ),
    'suite_on_randomness': (
        ["--config.eval.suite=('autoattack_rand',)"],
        ['eval.suite', 'autoattack_rand', "use 'autoattack'"],
    ),
    'too_many_examples': (
        ['--config.eval.num_examples=501'], ['num_examples=501', '500'],
    ),
    'unknown_norm': (
        ['--config.train_attack.norm=l1'],
        ['train_attack.norm', 'l1'],
    ),
    'unknown_init': (
        ['--config.train_attack.init=ones'],
        ['train_attack.init', 'ones'],
    ),
    'unknown_schedule': (
        ['--config.optimizer.schedule=cos'], ['schedule', 'cos', 'cosine'],
    ),
    'zero_steps': (['--config.train_attack.num_steps=0'], ['num_steps=0', '1']),
    'val_takes_all': (['--config.data.val_size=1297'], ['val_size', '1297']),
    'missing_dataset': (
        ['--config.data.name=no_such_set_at_all'], ['no_such_set_at_all'],
    ),
    'missing_npz': (['--config.data.name=npz:nowhere.npz'], ['nowhere.npz']),
    'stray_word': (['quickly'], ['quickly']),
    'unknown_flag': (['--wrkdir=x'], ['wrkdir']),
    'unknown_mode': (['--mode=trian'], ['trian', 'train']),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_mistake_gets_one_sentence(case, refused):
  flags, words = CASES[case]
  sentence = refused(*flags)
  for word in words:
    assert word in sentence, sentence


def test_missing_config_file(refused):
  assert 'nowhere.py' in refused(config='configs/nowhere.py')


def test_missing_workdir(capsys):
  assert main.main(['main', f'--config={PGD_AT}']) == 2
  assert '--workdir' in capsys.readouterr().err


def npz(tmp_path, **arrays) -> str:
  path = tmp_path / 'own.npz'
  np.savez(path, **arrays)
  return f'--config.data.name=npz:{path}'


IMAGES = np.zeros((200, 8, 8, 1), np.uint8)
LABELS = np.arange(200) % 10


def own(tmp_path, image, label):
  return npz(
      tmp_path, train_image=image, train_label=label, test_image=IMAGES,
      test_label=LABELS,
  )  # fmt: skip


def test_images_outside_the_range(tmp_path, refused):
  sentence = refused(own(tmp_path, IMAGES + 1.5, LABELS))
  assert '[0, 1]' in sentence and '1.5' in sentence


def test_labels_out_of_range(tmp_path, refused):
  assert '-1' in refused(own(tmp_path, IMAGES, LABELS - 1))


def test_one_class(tmp_path, refused):
  assert 'one class' in refused(own(tmp_path, IMAGES, 0 * LABELS))


def test_empty_and_damaged_npz(tmp_path, refused):
  empty = tmp_path / 'empty.npz'
  empty.touch()
  assert 'empty.npz' in refused(f'--config.data.name=npz:{empty}')
  damaged = tmp_path / 'damaged.npz'
  np.savez(damaged, train_image=IMAGES, train_label=LABELS)
  damaged.write_bytes(damaged.read_bytes()[:300])
  assert 'damaged.npz' in refused(f'--config.data.name=npz:{damaged}')


def test_student_and_teacher_with_different_classes(tmp_path, refused):
  """The classes of a run stand in its checkpoint, checked before a compile."""
  teacher = tmp_path / 'teacher'
  teacher.mkdir()
  claim_workdir(teacher, load_config(PGD_AT))
  folder = checkpoint.open_folder(teacher, 'best', 1)
  state = {
      'ema_params': {}, 'ema_stats': {},
      'params': {'student': {'w': np.zeros(3)}},
      'batch_stats': {}, 'step': np.zeros((), np.int32),
  }  # fmt: skip
  record = {'num_classes': 7, 'normalization': {}, 'chosen_by': ''}
  checkpoint.save(folder, 1, state, record)
  checkpoint.wait(folder)
  folder.close()
  sentence = refused(
      '--config.teacher.config=', f'--config.teacher.checkpoint={teacher}',
      config=RSLAD,
  )  # fmt: skip
  assert '7 classes' in sentence and '10' in sentence


def test_unwritable_workdir(tmp_path, refused):
  file = tmp_path / 'file'
  file.touch()
  assert 'file' in refused(workdir=file / 'run')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_workdir_without_permission(tmp_path, refused):
  tmp_path.chmod(0o500)
  assert 'cannot be written' in refused(workdir=tmp_path / 'run')


def test_workdir_of_another_config(tmp_path, refused):
  folder = tmp_path / 'run'
  folder.mkdir()
  claim_workdir(folder, load_config(PGD_AT))
  sentence = refused('--config.seed=3', '--config.train_attack.num_steps=9')
  assert 'seed' in sentence and 'train_attack.num_steps' in sentence
  assert 'optimizer' not in sentence


def test_eval_without_a_run(refused):
  assert 'config.json' in refused('--mode=eval')


def test_help(capsys):
  assert main.main(['main', '--help']) == 0
  assert '--workdir' in capsys.readouterr().out
