"""The comparison: how entries are written, what they share, what is told."""

import json
from pathlib import Path

import pytest

from jax_robust_kd import job
from jax_robust_kd import main as program
from jax_robust_kd.compare import (
  entries,
  plan,
  runner,
  scatter,
  tables,
)
from jax_robust_kd.compare.__main__ import main, parse
from jax_robust_kd.compare.entries import Entry, parse_entry
from jax_robust_kd.compare.tables import Row
from jax_robust_kd.core import UserError

ROOT = Path(__file__).parents[2]
KD = f'{ROOT}/configs/kd.py:digits'
NATURAL = f'{ROOT}/configs/natural.py:digits'


@pytest.mark.parametrize(
  'text, expected',
  [
    ('a.py', Entry('', 'a.py')),
    ('a.py:cifar10', Entry('', 'a.py:cifar10')),
    ('my one=a.py:x', Entry('my one', 'a.py:x')),
    ('a.py;data.augment.policy=', Entry('', 'a.py', ('data.augment.policy=',))),
    ('l = a.py ; x.y=1;z=2', Entry('l', 'a.py', ('x.y=1', 'z=2'))),
    (
      "a.py;eval.suite=('pgd-2','cw-2');s=';'",
      Entry('', 'a.py', ("eval.suite=('pgd-2','cw-2')", "s=';'")),
    ),
  ],
)
def test_entries(text, expected):
  assert parse_entry(text) == expected


@pytest.mark.parametrize(
  'text', ['=a.py', 'a/b=c.py', 'x=', 'a.py;epochs', 'a.py;=3', 'a.py;a b=1']
)
def test_badly_written_entries(text):
  with pytest.raises(UserError, match='--configs'):
    parse_entry(text)


def test_commas_part_entries_but_not_values(tmp_path):
  listed = tmp_path / 'list.txt'
  listed.write_text(
    "# all of them\n\nb.py;eval.suite=('x','y')  # two, really\nc=d.py\n"
  )
  found = entries.read_entries(f"a.py;s=('x',2),@{listed}")
  assert found == [
    Entry('', 'a.py', ("s=('x',2)",)),
    Entry('', 'b.py', ("eval.suite=('x','y')",)),
    Entry('c', 'd.py'),
  ]
  found = entries.read_entries('a.py:cifar10,cutout+mixup,b.py')
  assert found == [Entry('', 'a.py:cifar10,cutout+mixup'), Entry('', 'b.py')]
  with pytest.raises(UserError, match='cannot be read'):
    entries.read_entries(f'@{tmp_path}/none.txt')
  with pytest.raises(UserError, match='names no config'):
    entries.read_entries(' , ')


def test_labels_that_would_share_a_folder():
  entries.check_labels(['a', 'b', 'a b'])
  for other in ('a b', 'A b', 'a_b'):
    with pytest.raises(UserError, match='label=FILE'):
      entries.check_labels(['a b', 'c', other])


@pytest.mark.parametrize('text', ['', '0,', '-1', '0,0', 'x', '²'])
def test_seeds_that_are_none(text):
  with pytest.raises(UserError, match='--seeds'):
    entries.parse_seeds(text)


def test_an_entrys_own_settings_go_before_those_of_all():
  entry = Entry('', KD, ('optimizer.epochs=3', 'data.augment.policy='))
  label, c = plan.load_entry(entry, ['optimizer.epochs=7', 'log_every=9'])
  assert label == 'kd epochs=3 policy='
  assert (c.optimizer.epochs, c.log_every) == (3, 9)


@pytest.mark.parametrize(
  'override, message',
  [
    ('optimizer.epcohs=3', 'did you mean optimizer.epochs'),
    ('method.zzz=3', 'there are: method.'),
    ('optimizer.epochs=few', 'epochs=few'),
    ('seed=3', 'for --seeds to say'),
    ('optimizer=3', 'not a setting'),
  ],
)
def test_settings_are_checked(override, message):
  with pytest.raises(UserError, match=f"entry 'one': .*{message}"):
    plan.load_entry(Entry('one', KD, (override,)), [])


@pytest.mark.parametrize(
  'words, message',
  [
    (['--configs', 'a.py'], '--workdir'),
    (['--configs', 'none.py', '--workdir', 'w'], 'no file none.py'),
    (['--configs', KD, '--workdir', 'w', '--epochs=3'], 'GROUP.KEY'),
    (['--configs', KD, '--workdir', 'w', '--jobs', '0'], 'at least 1'),
    (['--configs', KD, '--workdir', 'w', '--budget', 'x'], 'invalid choice'),
    (['--configs', f'{KD},{KD}', '--workdir', 'w'], "'kd' and 'kd'"),
  ],
)
def test_mistakes_are_one_sentence(words, message, capsys, monkeypatch):
  monkeypatch.setattr(runner, 'run_all', None)  # nothing may run
  assert main(['compare', *words]) == 2
  said = capsys.readouterr().err
  assert said.startswith('error: ') and said.count('\n') == 1
  assert message in said


def test_flags_make_the_same_config():
  overrides = ("eval.suite=('pgd-2','cw-2')", 'attack.epsilon=1/8', 'seed=4')
  _, c = plan.load_entry(Entry('', KD, overrides[:2]), [])
  c.seed = 4
  c.data.augment.flip = True
  flags = plan.flags_for(KD, c)
  assert len(flags) == 5
  again = program.parse(['', *flags, '--workdir=w']).config
  assert job.as_json(again) == job.as_json(c)


def test_teachers_are_shared_and_judged_as_the_students(tmp_path):
  shared = ['data.num_train=128', 'eval.num_examples=9', 'attack.epsilon=1/8']
  known: list = []
  for overrides in ((), ('attack.num_steps=1',), ('data.num_train=99',)):
    _, c = plan.load_entry(Entry('', KD, overrides), shared)
    own, mine = plan.share_teachers(c, tmp_path, known)
    assert own.teacher.checkpoint == str(mine['teacher'].folder)
  assert [t.folder.name for t in known] == ['teacher', 'teacher-2']
  teacher = known[0].config
  assert (teacher.data.num_train, teacher.eval.num_examples) == (128, 9)
  assert (teacher.eval.epsilon, teacher.method.name) == ('1/8', 'trades')
  assert known[1].config.data.num_train == 99


def test_a_teacher_that_nobody_asks_is_not_trained(tmp_path):
  for spec, trained in ((NATURAL, 0), (KD, 1)):
    both = ['teacher.config', 'clean_teacher.config']
    shared = [f'{key}={ROOT}/configs/teacher.py:digits' for key in both]
    _, c = plan.load_entry(Entry('', spec), shared)
    known: list = []
    own, _ = plan.share_teachers(c, tmp_path, known)
    assert len(known) == trained
    assert not (own.clean_teacher.config or own.clean_teacher.checkpoint)


def test_budgets():
  args = [200, 100, 10], [11.0, 22.0, 4.0]
  assert tables.match_budget('own', *args) == [200, 100, 10]
  assert tables.match_budget('epochs', *args) == [200, 200, 200]
  assert tables.match_budget('passes', *args) == [200, 100, 550]
  assert tables.match_budget('passes', [1, 1], [1.0, 50.0]) == [1, 1]


def test_the_budget_of_passes_is_spent(tmp_path, monkeypatch):
  """As the command counts and plans it, up to the runs that it asks for."""
  asked = {}

  def run_all(tasks, **_):
    asked.update({task.label: task.command for task in tasks})
    return {task.folder: 'not run' for task in tasks}

  monkeypatch.setattr(runner, 'run_all', run_all)
  words = [
    '--configs', f'{NATURAL},{ROOT}/configs/pgd_at.py:digits',
    '--workdir', str(tmp_path), '--budget', 'passes',
    '--config.optimizer.epochs=28', '--config.attack.num_steps=4',
  ]  # fmt: skip
  assert main(['compare', *words]) == 1
  told = json.loads((tmp_path / 'comparison.json').read_text())
  plain, robust = told['runs']
  # A pass there and back counts as 3, and an attack of 4 steps as 12 more.
  assert (plain['epochs'], robust['epochs']) == (28, 6)
  spent = [run['epochs'] * run['passes_per_step'] for run in (plain, robust)]
  assert abs(spent[0] - spent[1]) <= robust['passes_per_step'] / 2
  assert '--config.optimizer.epochs=6' in asked['pgd_at, seed 0']
  assert '--config.optimizer.epochs=28' in asked['natural, seed 0']
  assert told['notes'][:-2] == []  # but for the two that were not run


def loaded(label, spec, *overrides):
  _, c = plan.load_entry(Entry(label, spec, overrides), [])
  return plan.Planned(label, None, spec, c, Path(label))


def test_what_differs_beyond_the_method_is_named():
  load = plan.Planned('', None, '', None, Path()).load._replace(passes=2.0)
  entries = [
    loaded('a', KD),
    loaded('b', NATURAL, 'attack.num_steps=1', 'optimizer.learning_rate=1'),
    loaded('c', KD, 'student.width=9', 'optimizer.epochs=5'),
    loaded('d', KD, 'teacher.sha256=0a'),
  ]
  entries = [e._replace(load=load) for e in entries]
  notes = plan.spend_alike(entries, 'own')
  assert [n.split(' differs')[0] for n in notes] == ['c', 'd']
  assert 'optimizer.epochs is 5, not 30, student.width is 9' in notes[0]
  assert "teacher.sha256 is '0a', not ''" in notes[1]
  notes = plan.spend_alike(entries, 'epochs')
  assert 'c trains for 30 epochs, not the 5' in notes[0]
  assert 'optimizer.epochs is' not in ''.join(notes)
  assert [e.config.optimizer.epochs for e in entries] == [30] * 4


def test_all_are_attacked_alike_in_the_end():
  a, b = loaded('a', KD), loaded('b', KD, 'attack.epsilon=1/16')
  with pytest.raises(UserError, match='--config.eval.epsilon=2/16 for all'):
    plan.check_threats({'a': a.config, 'b': b.config})
  b.config.eval.epsilon = '2/16'
  plan.check_threats({'a': a.config, 'b': b.config})


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
  columns, cells = tables.as_table(ROWS, lambda s: f'{s:.0f} s')
  text = tables.markdown('title', columns, cells, ['a note'])
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


def test_labels_of_the_picture_do_not_overlap():
  at = [(200 + 7 * (i % 4), 200 + 5 * (i // 4)) for i in range(20)]
  sizes = [(40 + 3 * i, 12) for i in range(20)]
  taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in at]
  corners = scatter.place(at, sizes, taken, (0, 0, 500, 400))
  boxes = [
    (x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)
  ]
  for number, box in enumerate(boxes):
    assert box[0] >= 0 and box[1] >= 0 and box[2] <= 500 and box[3] <= 400
    for other in (*boxes[:number], *taken):
      assert scatter.overlap(box, other) < 1e-5


def test_a_label_alone_is_beside_its_point():
  ((x, y),) = scatter.place([(100, 100)], [(30, 10)], [], (0, 0, 200, 200))
  assert 95 < x < 110 and 100 < y < 110


def test_options():
  words = ['--configs', 'a.py', '--workdir', 'w', '--config.x.y=1=2']
  options = parse(words)
  assert options.shared == ['x.y=1=2'] and options.seeds == [0]
  assert (options.budget, options.jobs) == ('epochs', 1)
