"""The comparison: its configs, what they share, its tables."""

import json
from pathlib import Path

import pytest

from jax_robust_kd import main as program
from jax_robust_kd.__main__ import COMMANDS, main
from jax_robust_kd.commandline import parse
from jax_robust_kd.compare import budget, children, command, configs, tables
from jax_robust_kd.compare.cost import Cost
from jax_robust_kd.compare.run import make_task
from jax_robust_kd.compare.tables import Row
from jax_robust_kd.config import load_config
from jax_robust_kd.core import UserError

ROOT = Path(__file__).parents[2]
KD = f'{ROOT}/configs/kd.py:digits'
NATURAL = f'{ROOT}/configs/natural.py:digits'


RUNS = """
from jax_robust_kd.config import load_config


def get_runs():
  short = load_config('KD')
  short.optimizer.epochs = 3
  return [('kd', load_config('KD')), ('kd (short)', short)]
"""


def write_runs(folder, text=RUNS):
  path = folder / 'runs.py'
  path.write_text(text.replace('KD', KD))
  return str(path)


def test_configs_are_files(tmp_path):
  files = [KD, NATURAL]
  found = configs.read_configs(files)
  assert [(label, file) for label, file, _ in found] == [
    ('kd', KD),
    ('natural', NATURAL),
  ]
  assert found[1][2].method.name == 'natural'
  one = configs.read_configs([KD])
  assert [label for label, _, _ in one] == ['kd']


def test_or_one_file_that_returns_them(tmp_path):
  file = write_runs(tmp_path)
  found = configs.read_configs([file])
  assert [(label, source) for label, source, _ in found] == [
    ('kd', file),
    ('kd (short)', file),
  ]
  assert [c.optimizer.epochs for _, _, c in found] == [30, 3]
  with pytest.raises(UserError, match='defines no get_config'):
    configs.read_configs([file, KD])


@pytest.mark.parametrize(
  'returned',
  ['None', '[]', '[1]', "['kd']", "[('kd', {})]", "[('kd', 'KD')]"],
)
def test_a_file_that_returns_something_else(returned, tmp_path):
  file = write_runs(tmp_path, f'def get_runs():\n  return {returned}\n')
  with pytest.raises(UserError, match=r'must return \(label, config\) pairs'):
    configs.read_configs([file])


@pytest.mark.parametrize('label', ['', 'a/b', '../a', ' a', 'a\nb', 'a|b'])
def test_labels_that_are_no_folder(label):
  with pytest.raises(UserError, match='letters, digits'):
    configs.check_labels(['a', label])


def test_labels_that_would_share_a_folder():
  configs.check_labels(['a', 'b', 'a b'])
  for other in ('a b', 'A b', 'a_b'):
    with pytest.raises(UserError, match=r'get_runs\(\)'):
      configs.check_labels(['a b', 'c', other])


@pytest.mark.parametrize('text', ['', '0,', '-1', '0,0', 'x', '²'])
def test_seeds_that_are_none(text):
  with pytest.raises(UserError, match='--seeds'):
    command.parse_seeds(text)


def read(spec, *settings):
  """Returns a config with settings of its own."""
  return configs.override(load_config(spec), settings, spec)


def test_settings_of_all_go_before_those_of_a_file(tmp_path):
  (_, _, c), (_, _, short) = configs.read_configs([write_runs(tmp_path)])
  settings = [
    'log_every=9',
    'optimizer.epochs=7',
    "eval.suite=('pgd-2','fgsm')",
  ]
  for before in (c, short):
    after = configs.override(before, settings, 'one')
    assert (after.optimizer.epochs, after.log_every) == (7, 9)
    assert after.eval.suite == ('pgd-2', 'fgsm')
  assert (c.optimizer.epochs, short.optimizer.epochs) == (30, 3)
  # A field of the model that the config did not name, as in `train`.
  assert read(KD, 'student.stem_stride=2').student.stem_stride == 2


@pytest.mark.parametrize(
  'override, message',
  [
    ('optimizer.epcohs=3', 'did you mean optimizer.epochs'),
    ('method.zzz=3', 'there are: method.'),
    ('optimizer.epochs=few', 'epochs=few'),
    ('seed=3', 'give --seeds'),
    ('optimizer=3', 'not a setting'),
  ],
)
def test_settings_are_checked(override, message):
  with pytest.raises(UserError, match=message):
    configs.override(load_config(KD), [override], 'one')


@pytest.mark.parametrize(
  'words, message',
  [
    (['--configs', 'a.py'], '--workdir'),
    (['--configs', 'none.py', '--workdir', 'w'], 'no file none.py'),
    (['--configs', KD, '--workdir', 'w', '--epochs=3'], 'GROUP.KEY'),
    (['--configs', KD, '--workdir', 'w', '--jobs', '0'], 'at least 1'),
    (['--configs', KD, '--workdir', 'w', '--budget', 'x'], 'epochs|passes|own'),
    (['--configs', f'{KD},{KD}', '--workdir', 'w'], "'kd' and 'kd'"),
  ],
)
def test_mistakes_are_one_sentence(words, message, capsys, monkeypatch):
  monkeypatch.setattr(children, 'run_all', None)  # nothing may run
  assert main(['jax-robust-kd', 'compare', *words]) == 2
  said = capsys.readouterr().err
  assert said.startswith('error: ') and said.count('\n') == 1
  assert message in said


def test_a_run_reads_the_same_config(tmp_path):
  """As the ordinary command does, from what `compare` writes for it."""
  suite = "eval.suite=('pgd-2','cw-2')"
  c = read(KD, suite, 'train_attack.epsilon=1/8')
  c.data.augment.flip = True
  planned = configs.Run('a', c, tmp_path, KD)
  task = make_task(configs.with_seed(planned, 4))
  folder = tmp_path / 'seed-4'
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(task.config))
  values = program.parse(['', *task.command[3:]])
  assert values.workdir == str(folder)
  c.seed = 4
  assert values.config.to_dict() == c.to_dict()


def test_teachers_are_shared_and_judged_as_the_students(tmp_path):
  shared = [
    'data.num_train=128',
    'eval.num_examples=9',
    'train_attack.epsilon=1/8',
  ]
  known: list = []
  for overrides in ((), ('train_attack.num_steps=1',), ('data.num_train=99',)):
    c = read(KD, *shared, *overrides)
    student, (teacher,) = configs.share_teachers(c, tmp_path, known)
    assert student.teacher.checkpoint == str(teacher.folder)
  assert [t.folder.name for t in known] == ['teacher', 'teacher-2']
  teacher = known[0].config
  assert (teacher.data.num_train, teacher.eval.num_examples) == (128, 9)
  assert (teacher.eval.epsilon, teacher.method.name) == ('1/8', 'trades')
  assert known[1].config.data.num_train == 99


def test_a_teacher_that_nobody_asks_is_not_trained(tmp_path):
  for spec, trained in ((NATURAL, 0), (KD, 1)):
    both = ['teacher.config', 'clean_teacher.config']
    shared = [f'{key}={ROOT}/configs/teacher.py:digits' for key in both]
    known: list = []
    student, _ = configs.share_teachers(read(spec, *shared), tmp_path, known)
    assert len(known) == trained
    unused = student.clean_teacher
    assert not (unused.config or unused.checkpoint)


def test_budgets():
  args = [200, 100, 10], [11.0, 22.0, 4.0]
  assert budget.match_epochs('own', *args) == [200, 100, 10]
  assert budget.match_epochs('epochs', *args) == [200, 200, 200]
  assert budget.match_epochs('passes', *args) == [200, 100, 550]
  assert budget.match_epochs('passes', [1, 1], [1.0, 50.0]) == [1, 1]


def test_the_budget_of_passes_is_spent(tmp_path, monkeypatch):
  """As the command counts and plans it, up to the runs that it asks for."""
  epochs = {}

  def run_all(tasks, **_):
    epochs.update({t.label: t.config['optimizer']['epochs'] for t in tasks})
    return {task.folder: 'not run' for task in tasks}

  monkeypatch.setattr(children, 'run_all', run_all)
  words = [
    '--configs', f'{NATURAL},{ROOT}/configs/pgd_at.py:digits',
    '--workdir', str(tmp_path), '--budget', 'passes',
    '--config.optimizer.epochs=28', '--config.train_attack.num_steps=4',
  ]  # fmt: skip
  assert main(['jax-robust-kd', 'compare', *words]) == 1
  told = json.loads((tmp_path / 'comparison.json').read_text())
  plain, robust = told['runs']
  # A pass there and back counts as 3, and an attack of 4 steps as 12 more.
  assert (plain['epochs'], robust['epochs']) == (28, 6)
  spent = [run['epochs'] * run['passes_per_step'] for run in (plain, robust)]
  assert abs(spent[0] - spent[1]) <= robust['passes_per_step'] / 2
  assert epochs == {'natural, seed 0': 28, 'pgd_at, seed 0': 6}
  assert told['notes'][:-2] == []  # but for the two that were not run


def loaded(label, spec, *overrides):
  c, cost = read(spec, *overrides), Cost(passes=2.0)
  return configs.Run(label, c, Path(label), spec, cost=cost)


def test_what_differs_beyond_the_method_is_named():
  runs = [
    loaded('a', KD),
    loaded(
      'b', NATURAL, 'train_attack.num_steps=1', 'optimizer.learning_rate=1'
    ),
    loaded('c', KD, 'student.width=9', 'optimizer.epochs=5'),
    loaded('d', KD, 'teacher.sha256=0a'),
  ]
  notes = budget.match_budgets(runs, 'own')
  assert [n.split(' differs')[0] for n in notes] == ['c', 'd']
  assert 'optimizer.epochs is 5, not 30, student.width is 9' in notes[0]
  assert "teacher.sha256 is '0a', not ''" in notes[1]
  notes = budget.match_budgets(runs, 'epochs')
  assert 'c trains for 30 epochs, not the 5' in notes[0]
  assert 'optimizer.epochs is' not in ''.join(notes)
  assert [run.config.optimizer.epochs for run in runs] == [30] * 4


def test_all_are_attacked_alike_in_the_end():
  a, b = loaded('a', KD), loaded('b', KD, 'train_attack.epsilon=1/16')
  with pytest.raises(UserError, match='--config.eval.epsilon=2/16 for all'):
    configs.check_threats({'a': a.config, 'b': b.config})
  b.config.eval.epsilon = '2/16'
  configs.check_threats({'a': a.config, 'b': b.config})


def row(label, seed, status='done', error='', **accuracy):
  accuracy = {k.replace('_', ' '): v for k, v in accuracy.items()}
  return Row(
    label,
    seed,
    status,
    error,
    'x.py',
    'w/x',
    accuracy,
    3,
    2.5,
    100.0,
    7.0,
    {'eps': '8/255'},
  )


ROWS = [
  row('teacher', None, clean=80.0, fgsm=50.0, worst_case=40.0),
  row('a', 0, clean=70.0, fgsm=41.0, worst_case=30.0),
  row('a', 1, clean=74.0, fgsm=40.0, worst_case=30.0),
  row('b', 0, clean=60.0, worst_case=20.0),
  row('b', 1, 'failed', 'the loss is nan, so | ended'),
]


def test_summary():
  teacher, a, b = tables.summarize(ROWS)
  assert teacher['teacher'] and not a['teacher']
  assert a['mean'] == {'clean': 72.0, 'fgsm': 40.5, 'worst case': 30.0}
  assert a['sd']['clean'] == pytest.approx(8**0.5)
  assert (a['seeds'], b['seeds'], b['failed']) == ([0, 1], [0], [1])
  assert b['mean'] == {'clean': 60.0, 'worst case': 20.0} and b['sd'] == {}


def test_an_entry_called_teacher_is_not_mixed_with_it():
  rows = [row('teacher', None, clean=8.0), row('teacher', 0, clean=4.0)]
  assert [s['mean']['clean'] for s in tables.summarize(rows)] == [8.0, 4.0]


def test_table():
  text = tables.markdown('title', ROWS, ['a note'])
  lines = text.splitlines()
  assert lines[2] == (
    '|  | seeds | clean | fgsm | worst case | epochs | passes per step | '
    'images/s | wall-clock |'
  )
  assert lines[5] == (
    '| a | 2 | 72.0 ± 2.8 | 40.5 ± 0.7 | 30.0 ± 0.0 | 3 | 2.5 | 100 | 7 s |'
  )
  assert lines[6].startswith('| b | 1 (1 failed) | 60.0 | – | 20.0 |')
  assert lines[-1] == '- a note'
  widths = {line.count('|') for line in lines[2:7]}
  assert widths == {10}


def test_csv_has_a_row_for_each_run():
  columns = tables.as_columns(ROWS)
  assert {len(v) for v in columns.values()} == {5}
  assert columns['fgsm'] == [50.0, 41.0, 40.0, None, None]
  assert columns['status'][-1] == 'failed' and columns['eps'][0] == '8/255'
  # In each row those of its label, over the seeds that are done.
  assert columns['clean mean'] == [80.0, 72.0, 72.0, 60.0, 60.0]
  assert columns['clean sd'] == [None, 8**0.5, 8**0.5, None, None]
  assert columns['fgsm mean'] == [50.0, 40.5, 40.5, None, None]


def test_options():
  words = ['--configs', 'a.py', '--workdir', 'w', '--config.x.y=1=2']
  args = parse(COMMANDS['compare'], 'jax_robust_kd compare', words)
  options = command.read_options(args)
  assert options['settings'] == ['x.y=1=2'] and options['seeds'] == [0]
  assert (options['budget'], options['jobs']) == ('epochs', 1)
