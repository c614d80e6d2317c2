"""The log of a run: whole lines, whole files, nothing forgotten or doubled."""

import json

import pytest

from jax_robust_kd.core import RunError, UserError
from jax_robust_kd.runtime import files

LINES = [{'step': s, 'loss': 0.1 * s + 0.2} for s in (2, 4, 6)]


@pytest.fixture
def log(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for line in LINES:
    files.append(path, line)
  return path


def test_lines_come_back_exactly(log):
  assert files.read_lines(log) == LINES
  assert log.read_text().count('\n') == 3


def test_no_log_has_no_lines(tmp_path):
  assert files.read_lines(tmp_path / 'none.jsonl') == []


@pytest.mark.parametrize(
  'step,left', [(0, 0), (1, 0), (4, 2), (5, 2), (6, 3), (9, 3)]
)
def test_truncate_forgets_what_came_after(log, step, left):
  whole = log.read_bytes()
  files.truncate(log, step)
  assert files.read_lines(log) == LINES[:left]
  assert whole.startswith(log.read_bytes())  # kept lines keep their bytes


@pytest.mark.parametrize('cut', [1, 2, 5, 20])
def test_a_cut_last_line_is_dropped(log, cut):
  """A kill may leave the beginning of a line, of any length."""
  whole = log.read_bytes()
  log.write_bytes(whole[:-cut])
  kept = LINES if cut == 1 else LINES[:2]  # without its newline it is whole
  assert files.read_lines(log) == kept
  files.truncate(log, 6)
  files.append(log, {'step': 8})  # must not be glued to the rest
  assert files.read_lines(log) == [*kept, {'step': 8}]


def test_truncate_makes_an_empty_log(tmp_path):
  files.truncate(tmp_path / 'metrics.jsonl', 0)
  assert (tmp_path / 'metrics.jsonl').read_text() == ''


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'results.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(TypeError):
    files.write_json(path, {'a': object()})
  assert files.read_json(path) == {'a': 1}
  assert json.loads(path.read_text()) == {'a': 1}


def test_a_kill_while_json_is_written_leaves_the_old_file(
  tmp_path, monkeypatch
):
  path = tmp_path / 'results.json'
  files.write_json(path, {'a': 1})

  def killed(source, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(files.os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    files.write_json(path, {'a': 2})
  assert files.read_json(path) == {'a': 1}


def test_unreadable_json_is_named(tmp_path):
  with pytest.raises(UserError, match='none.json'):
    files.read_json(tmp_path / 'none.json')
  damaged = tmp_path / 'damaged.json'
  damaged.write_text('{"a": ')
  with pytest.raises(UserError, match='damaged.json'):
    files.read_json(damaged)


def test_what_cannot_be_written_stops_the_run(tmp_path):
  """As on a full disk; here the folder is missing."""
  gone = tmp_path / 'gone' / 'metrics.jsonl'
  for write in (files.append, files.write_json):
    with pytest.raises(RunError, match='metrics.jsonl cannot be written'):
      write(gone, {'step': 1})
  with pytest.raises(RunError, match='metrics.jsonl cannot be written'):
    files.truncate(gone, 0)
