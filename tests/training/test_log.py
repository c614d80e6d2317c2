"""What a run says of itself."""

import pytest

from jax_robust_kd.runtime import files
from jax_robust_kd.training import log
from jax_robust_kd.training.log import Log, mean


def test_metrics_are_averaged():
  assert mean([{'a': 1.0, 'b': 0.0}, {'a': 3.0, 'b': 0.5}]) == {
    'a': 2.0,
    'b': 0.25,
  }


def test_speed_is_measured_between_lines(tmp_path, monkeypatch, capsys):
  """Once compiled, and on the first steps, it tells how long the rest takes."""
  now = [100.0]
  monkeypatch.setattr(log.time, 'monotonic', lambda: now[0])
  run = Log(tmp_path, start=10, total=30, batch_size=8)
  for step in range(11, 21):
    now[0] += 40.0 if step == 11 else 2.0  # the first compiles
    run.estimate(step, {})
  line = {'step': 20, 'loss': 0.25}
  with run.progress('run') as show:
    show(line, {'val_robust': -1.0, 'val_clean': -1.0})
    now[0] += 20.0
    show({**line, 'step': 30}, {'val_robust': 0.25, 'val_clean': 0.5})
  speeds = files.read_lines(tmp_path / 'speed.jsonl')
  assert [s['step'] for s in speeds] == [11, 16, 20, 30]
  rates = [s['images_per_second'] for s in speeds]
  assert rates == pytest.approx([0.2, 4.0, 4.0, 4.0])
  said = capsys.readouterr().out
  assert said.startswith(
    'time      4 images/s on the first steps: about 28 s to go, without '
    'validation\n'
  )
  last = 'run  30/30  4 images/s  loss 0.250  best val clean 50.0 robust 25.0'
  assert last in said and said.count('best val') == 1
