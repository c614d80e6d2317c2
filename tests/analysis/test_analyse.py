"""Similarity of features: the formulas, and the command."""

import json
import sys

from helpers.saved_runs import save_run
import numpy as np
import pytest

from jax_robust_kd.__main__ import main
from jax_robust_kd.analysis import cka, features


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def gram_cka(x, y):
  """The same from the N x N side: tr(K H L H), Kornblith et al. eq. 3."""
  count = len(x)
  center = np.eye(count) - np.ones((count, count)) / count

  def hsic(a, b):
    return np.trace(a @ a.T @ center @ b @ b.T @ center)

  return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def test_cka_equals_the_form_with_gram_matrices():
  x = draw(0, 40, 5) + 3
  y = x @ draw(1, 5, 7) + draw(2, 40, 7)
  expected = gram_cka(x, y)
  assert 0.1 < expected < 0.9
  assert cka.linear_cka(x, y) == pytest.approx(expected, rel=1e-10)


def test_cka_by_hand():
  # Centered (-1, 1, 0) with (-1, 0, 1): product 1, lengths 2 and 2.
  x = np.array([[0.0], [2.0], [1.0]])
  assert cka.linear_cka(x, np.array([[1.0], [3], [5]])) == pytest.approx(1 / 4)
  # With (1, 1, -2), already centered: product 0.
  assert cka.linear_cka(x, np.array([[1.0], [1], [-2]])) == pytest.approx(0)


def test_cka_ignores_rotation_scale_and_shift_but_not_stretching():
  x = draw(0, 200, 6)
  y = x[:, :4] + draw(1, 200, 4)
  rotation = np.linalg.qr(draw(2, 6, 6))[0]
  value = cka.linear_cka(x, y)
  assert cka.linear_cka(7 * x @ rotation + 3, y) == pytest.approx(value)
  assert cka.linear_cka(y, x) == pytest.approx(value)
  assert cka.linear_cka(x, x @ rotation) == pytest.approx(1)
  assert abs(cka.linear_cka(x * [1, 1, 1, 1, 1, 9], y) - value) > 0.1


def test_cka_of_unrelated_features_is_as_small_as_its_docstring_says():
  value = cka.linear_cka(draw(0, 2000, 20), draw(1, 2000, 5))
  assert value == pytest.approx(np.sqrt(20 * 5) / 2000, rel=0.4)
  assert cka.linear_cka(draw(0, 20, 900), draw(1, 20, 900)) > 0.9


def test_dead_features_count_as_unlike():
  zeros = np.zeros((4, 3))
  assert cka.linear_cka(zeros + 2, draw(0, 4, 3)) == 0
  assert cka.mean_cosine(zeros, draw(0, 4, 3)) == 0


def test_cosine_by_hand():
  x = np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
  y = np.array([[4.0, 3.0], [0.0, 2.0], [-2.0, -2.0]])
  assert cka.mean_cosine(x, y) == pytest.approx((24 / 25 + 0 - 1) / 3)


def test_features_are_means_over_pixels_in_order(digits, tmp_path):
  network = save_run(tmp_path, digits)
  image = digits.test.image[:5] / np.float32(255)
  found = features.extract(network, lambda rows: image[rows], 5, 4)
  assert list(found) == ['stem', 'stage1', 'stage2', 'stage3', 'pooled']
  direct = network.forward(network.variables, image, 'eval').features
  for name, value in found.items():
    axes = (1, 2) if name != 'pooled' else ()
    expected = np.asarray(direct[name]).mean(axes) if axes else direct[name]
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def runs(digits, tmp_path_factory):
  """A student with a wider teacher of other weights in its config."""
  root = tmp_path_factory.mktemp('runs')
  wide = dict(name='small_resnet', depth=8, width=10)
  save_run(root / 'teacher', digits, 1, student=wide)
  teacher = str(root / 'teacher')
  save_run(root / 'student', digits, 0, teacher_checkpoint=teacher)
  return root


def command(*flags):
  return main(['jax-robust-kd', 'analyse', *map(str, flags)])


@pytest.fixture(scope='module')
def own_teacher(runs):
  folder = runs / 'student'
  assert command('--workdir', folder, '--num_examples=60') == 0
  return json.loads((folder / 'analysis.json').read_text())


def test_the_command_takes_the_teacher_of_the_run(own_teacher, runs):
  found = own_teacher
  assert found['teacher'] == str(runs / 'teacher')
  assert found['student_sha256'] != found['teacher_sha256']
  assert found['num_examples'] == 60 and found['eps'] == '2/16'
  assert found['attack'] == 'pgd-10 on the student'
  names = ['stem', 'stage1', 'stage2', 'stage3', 'pooled']
  for table in found['cka'].values():
    assert list(table) == names
    for row in table.values():
      assert list(row) == names
      assert all(0 < value < 1 for value in row.values())
  for cosine in found['cosine'].values():
    assert list(cosine) == names
    assert all(0 < value < 1 - 1e-6 for value in cosine.values())


def test_the_attack_is_on_the_student(own_teacher):
  """A network is moved further by an attack on itself than on another."""
  cosine = own_teacher['cosine']
  assert cosine['student']['pooled'] < cosine['teacher']['pooled']


def test_the_picture(own_teacher, runs):
  pytest.importorskip('matplotlib')
  from PIL import Image

  with Image.open(runs / 'student' / 'analysis.png') as image:
    pixels = np.asarray(image.convert('RGB'))
  assert pixels.shape[0] >= 600 and len(np.unique(pixels)) > 50


def test_a_network_is_like_itself_and_matplotlib_is_not_needed(
  runs, capsys, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  folder = runs / 'teacher'
  flags = ('--teacher', folder, '--num_examples=40')
  assert command('--workdir', folder, *flags) == 0
  assert 'pip install matplotlib' in capsys.readouterr().out
  assert not (folder / 'analysis.png').exists()
  found = json.loads((folder / 'analysis.json').read_text())
  for table in found['cka'].values():
    for stage in table:
      assert table[stage][stage] == pytest.approx(1)
  assert found['cosine']['student'] == found['cosine']['teacher']


# flags, words that the sentence must hold; RUN stands for the folder of runs
CASES = {
    'no_workdir': ([], ['--workdir RUN']),
    'no_run': (['--workdir=RUN/nowhere'], ['RUN/nowhere', 'config.json']),
    'no_teacher': (['--workdir=RUN/teacher'], ['no teacher', '--teacher RUN2']),
    'teacher_is_no_run': (
        ['--workdir=RUN/student', '--teacher=RUN/nobody'], ['RUN/nobody'],
    ),
    'one_image': (
        ['--workdir=RUN/student', '--num_examples=1'],
        ['num_examples=1', '500'],
    ),
    'too_many_images': (
        ['--workdir=RUN/student', '--num_examples=501'], ['501', '500'],
    ),
    'unknown_flag': (['--workdr=RUN/student'], ['workdr']),
    'wrong_type': (['--workdir=x', '--num_examples=few'], ['num_examples']),
    'stray_word': (['--workdir=x', 'quickly'], ['quickly']),
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_mistake_gets_one_sentence(case, runs, capsys):
  given, words = CASES[case]
  assert command(*(flag.replace('RUN', str(runs)) for flag in given)) == 2
  error = capsys.readouterr().err.replace(str(runs), 'RUN')
  assert error.startswith('error: ') and error.count('\n') == 1, error
  for word in words:
    assert word in error, error


def test_help(capsys):
  assert command('--help') == 0
  assert '--teacher RUN2' in capsys.readouterr().out
