"""Pages, cards and tables: right numbers, and hostile names as text."""

import csv
from html.parser import HTMLParser
import io
import json
from pathlib import Path

import numpy as np
import pytest

from jax_robust_kd.core import UserError
from jax_robust_kd.report import card, comparison, numbers, page, strips, table
from jax_robust_kd.report.evidence import Evidence, Shown
from jax_robust_kd.report.reading import read_run

HOSTILE = '<script>alert(1)</script>'
FORMULA = '=HYPERLINK("http://x")'


def write_run(folder: Path, **changes) -> Path:
  """Writes the files of an evaluated run of six images and three classes."""
  folder.mkdir(parents=True)
  results = {
    'name': 'rslad', 'dataset': 'digits', 'architecture': 'small_resnet',
    'parameters': 1234, 'norm': 'linf', 'eps': '8/255', 'clean_acc': 100.0,
    'accuracy': {'pgd-20': 50.0}, 'robust_accuracy': 50.0,
    'robust_interval_95': [18.8, 81.2], 'num_examples': 6, 'split': 'test',
    'checkpoint': 'best', 'checkpoint_step': 20, 'chosen_by': 'pgd-10',
    'teacher': '', 'seed': 0, 'precision': 'float32', 'sha256': 'ab' * 32,
    'commit': 'abc', 'version': '0.1.0', 'jax': '0.10.2', 'corruptions': {},
  } | changes  # fmt: skip
  (folder / 'results.json').write_text(json.dumps(results))
  config = {'seed': 0, 'data': {'batch_size': 64}, 'method': {'name': 'rslad'}}
  (folder / 'config.json').write_text(json.dumps(config))
  rows = ['id,label,clean,clean margin,pgd-20,pgd-20 margin,robust']
  margins = (-2, 1, -1, 3, -3, 0.5)
  for i, margin in enumerate(margins):
    kept = int(margin < 0)
    rows.append(f'{i},{i % 3},1,-4.0,{kept},{margin},{kept}')
  (folder / 'images.csv').write_text('\n'.join(rows) + '\n')
  lines = [
    {'step': 10, 'loss': 2.0},
    {'step': 20, 'loss': 1.0, 'val_clean': 0.9, 'val_robust': 0.5},
    {'step': 30, 'loss': 0.9, 'val_clean': 0.9, 'val_robust': 0.4},
  ]
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(line) + '\n' for line in lines)
  )
  speed = {'step': 10, 'images_per_second': 640.0}
  (folder / 'speed.jsonl').write_text(json.dumps(speed) + '\n')
  return folder


def evidence(names=('a', 'b', 'c')) -> Evidence:
  label = np.arange(6) % 3
  logits = 4.0 * np.eye(3, dtype=np.float32)[label]
  attacked = logits.copy()
  attacked[[1, 3, 5]] = np.roll(attacked[[1, 3, 5]], 1, axis=1)
  image = np.full((6, 4, 4, 3), 128, np.uint8)
  adv = np.full((6, 4, 4, 3), 0.5, np.float32) + 0.01
  shown = Shown(np.arange(6), adv, attacked)
  return Evidence(image, label, tuple(names), logits, {'pgd-20': shown})


class Page(HTMLParser):
  """What a browser would make of a page, roughly."""

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.addresses, self.text = [], [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.addresses += [v for k, v in attrs if k in ('src', 'href')]

  def handle_data(self, data):
    self.text += data


def test_numbers_by_class():
  label = np.array([0, 0, 1, 1, 2, 2, 3])
  robust = np.array([1, 0, 1, 1, 0, 0, 1], bool)
  found = numbers.by_class(label, np.ones(7, bool), robust, 5)
  np.testing.assert_array_equal(found.images, [2, 2, 2, 1, 0])
  np.testing.assert_allclose(found.robust, [50, 100, 0, 100, np.nan])
  assert (found.worst, found.worst_class) == (0, 2)
  assert found.worst_three == pytest.approx((0 + 50 + 100) / 3)


def test_confusion_counts_true_classes_in_rows():
  found = numbers.confusion(np.array([0, 0, 2]), np.array([0, 1, 1]), 3)
  np.testing.assert_array_equal(found, [[1, 1, 0], [0, 0, 0], [0, 1, 0]])


def test_strips_are_chosen_by_margin_alone():
  margin = np.concatenate([-np.arange(1, 21), np.arange(1, 21)]).astype(float)
  clean = np.ones(40, bool)
  clean[0] = False  # the kept one nearest to 0 is wrong without attack
  margin[25] = np.nan  # not attacked
  chosen = numbers.choose_strips(clean, margin)
  assert chosen['kept, lowest margin'].tolist() == [1, 2, 3]
  assert chosen['broken, lowest margin'].tolist() == [20, 21, 22]
  assert len(set(np.concatenate(list(chosen.values())).tolist())) == 12
  median = np.median(np.abs(margin[1:20]))
  middle = np.abs(margin[chosen['kept, median margin']])
  assert abs(middle.mean() - median) <= 1


def test_few_images_are_not_shown_twice():
  chosen = numbers.choose_strips(np.ones(4, bool), -np.arange(1.0, 5))
  assert chosen['kept, lowest margin'].tolist() == [0, 1, 2]
  assert chosen['kept, median margin'].tolist() == [3]
  assert not len(chosen['broken, lowest margin'])


def test_margin_is_that_of_the_largest_wrong_logit():
  logits = np.array([[1.0, 4.0, 2.0], [3.0, 0.0, 1.0]], np.float32)
  np.testing.assert_allclose(
    strips.margin_of(logits, np.array([1, 2])), [-2.0, 2.0]
  )


def test_the_page_of_a_run(tmp_path):
  run = read_run(write_run(tmp_path / 'run'))
  curve = {'epsilon': [0, 0.03], 'correct': [6, 3], 'total': [6, 6]}
  subject = page.Subject(
    run, ('a', 'b', 'c'), evidence(), {'rslad': curve},
    {'seed': 1, 'data': {'batch_size': 64}, 'method': {'name': 'rslad'}},
    'jax-robust-kd train --config rslad:digits',
  )  # fmt: skip
  html = page.one_run(subject)
  shown = Page(html)
  assert len(html) < 2_000_000
  assert all(a.startswith('data:') for a in shown.addresses), shown.addresses
  assert shown.tags.count('svg') == 6  # every figure is there
  assert html.count('class="strip"') == 6
  assert 'a gap of 10.0 points' in ' '.join(shown.text.split())
  for text in ('100.0 %', '50.0 %', 'Nobody has checked', 'seed'):
    assert text in shown.text


@pytest.mark.parametrize('name', [HOSTILE, '$x$ & "y"', '\x1b[31mred\n'])
def test_hostile_names_are_text(name, tmp_path):
  run = read_run(
    write_run(tmp_path / 'run', name=name, dataset=name, teacher=name)
  )
  plain = Page(page.one_run(page.Subject(run, ('a', 'b', 'c'), evidence())))
  names = (name, 'b', 'c')
  html = page.one_run(page.Subject(run, names, evidence(names)))
  hostile = Page(html)
  assert hostile.tags == plain.tags, 'a name became markup'
  several = Page(comparison.several_runs([run, run]))
  assert several.tags.count('script') == 1
  text = card.model_card(run, 'jax-robust-kd train')
  assert HOSTILE not in text.partition('---\n\n')[2]
  lines = text.splitlines()
  assert lines[0] == '---' and lines.count('---') == 2


def test_no_cell_of_the_table_is_a_formula(tmp_path):
  write_run(tmp_path / 'a', dataset=FORMULA, name='-1+1')
  write_run(tmp_path / 'b', clean_acc=100 / 3)
  rows = list(
    csv.DictReader(io.StringIO(table.as_csv(table.find_runs(tmp_path))))
  )
  assert rows[0]['dataset'] == "'" + FORMULA and rows[0]['name'] == "'-1+1"
  assert rows[1]['clean_acc'] == repr(100 / 3), 'nothing is rounded'
  assert rows[1]['accuracy.pgd-20'] == '50.0'
  assert [float(r['worst_class']) for r in rows] == [50.0, 50.0]


def test_the_card_has_a_metric_for_each_attack(tmp_path):
  run = read_run(write_run(tmp_path / 'run'))
  metrics = card.front_matter(run)['model-index'][0]['results'][0]['metrics']
  assert [m['name'] for m in metrics] == [
    'Accuracy',
    'Accuracy under pgd-20, linf 8/255',
    'Accuracy under worst case, linf 8/255',
  ]
  assert [m['value'] for m in metrics] == [100.0, 50.0, 50.0]
  text = card.model_card(run, '', teacher_sha256='cd' * 32)
  assert 'cd' * 32 in text and 'adaptive attacks' in text


@pytest.mark.parametrize('damage', ['missing', 'no key', 'ragged'])
def test_a_run_that_cannot_be_shown(damage, tmp_path):
  folder = write_run(tmp_path / 'run')
  if damage == 'missing':
    (folder / 'results.json').unlink()
  elif damage == 'no key':
    (folder / 'results.json').write_text('{}')
  else:
    (folder / 'images.csv').write_text('id,label\n1\n')
  with pytest.raises(UserError, match='evaluate'):
    read_run(folder)


def test_a_folder_without_runs(tmp_path):
  with pytest.raises(UserError, match='no evaluated run'):
    table.find_runs(tmp_path)
