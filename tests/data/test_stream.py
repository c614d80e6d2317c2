"""Sets on disk: the same batches as from memory, and every fault has an end."""

import io
import itertools
import multiprocessing
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from PIL import Image
import pytest

from jax_robust_kd import data, main
from jax_robust_kd.core import RunError, UserError
from jax_robust_kd.data import decode as decode_lib
from jax_robust_kd.runtime import faults

pytest.importorskip('grain')
ROOT = Path(__file__).parents[2]
N, BATCH = 48, 12
# The folder's fixed order: files 0 to 31 are ants, 32 to 63 are bees.
ORDER = np.random.default_rng(0).permutation(64)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """64 training images, 16 of them held out, each of a colour of its own."""
  root = tmp_path_factory.mktemp('set')
  rng = np.random.default_rng(0)
  for part, count in (('train', 32), ('test', 5)):
    for label, name in enumerate(('ant', 'bee')):
      for place in range(count):
        pixels = rng.integers(0, 256, (6, 5, 3), np.uint8)
        pixels[0, 0] = 2 * place + label, label, part == 'test'
        file = root / part / name / f'{place:02d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
  return root


def _load(folder, **reading):
  reading = {'memory_gb': 0.0, 'workers': 0, **reading}
  reading = data.Reading(**reading)
  return data.load(str(folder), val_size=16, reading=reading, val='last')


def _take(split, steps, start=0, **kwargs):
  kwargs = {'batch_size': BATCH, 'seed': 3, 'start_step': start, **kwargs}
  batches = data.train_batches(split, **kwargs)
  found = list(itertools.islice(batches, steps))
  batches.close()
  return found


def _names(batches):
  """The images' own numbers, in order."""
  return np.concatenate([b['image'][..., 0, 0, 0].ravel() for b in batches])


def _same(one, other):
  assert len(one) == len(other)
  for a, b in zip(one, other, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert type(b[key]) is np.ndarray
      np.testing.assert_array_equal(a[key], b[key])


def _copy(folder, tmp_path):
  for file in folder.rglob('*.png'):
    copy = tmp_path / file.relative_to(folder)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(file.read_bytes())
  return tmp_path


# The same as from memory.


@pytest.mark.parametrize('workers', [0, 2])
def test_streamed_batches_equal_those_from_memory(folder, workers, capfd):
  memory = _load(folder, memory_gb=8.0)
  assert isinstance(memory.train.image, np.ndarray)
  disk = _load(folder, workers=workers)
  assert not isinstance(disk.train.image, np.ndarray)
  assert isinstance(disk.val.image, np.ndarray)
  assert f'streamed from disk by {workers} worker' in capfd.readouterr().err
  assert disk.train.image.shape == memory.train.image.shape
  _same(_take(memory.train, 6, start=3), _take(disk.train, 6, start=3))
  rows = np.arange(len(memory.test.label))
  for on_disk, read in zip(disk.test, memory.test, strict=True):
    np.testing.assert_array_equal(on_disk[rows], read)
  np.testing.assert_array_equal(memory.val.image, disk.val.image)


def test_a_split_on_disk_can_be_indexed_like_an_array(folder):
  memory, disk = _load(folder, memory_gb=8.0).train, _load(folder).train
  rows = np.array([[40, 3], [7, 7]])
  np.testing.assert_array_equal(disk.image[rows], memory.image[rows])
  np.testing.assert_array_equal(disk.label[rows], memory.label[rows])
  np.testing.assert_array_equal(
    disk.image[10:20][np.arange(3)], memory.image[10:13]
  )
  assert len(disk.image[:5]) == 5 and disk.image.dtype == np.uint8


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_an_epoch_holds_every_image_once_on_any_processes(folder, processes):
  train = _load(folder).train
  shards = [
    _take(train, 4, process_index=p, process_count=processes)
    for p in range(processes)
  ]
  names = [set(_names(shard)) for shard in shards]
  assert sum(len(n) for n in names) == len(set().union(*names)) == N
  whole = _take(train, 4)
  joined = [
    {
      key: np.concatenate([shard[step][key] for shard in shards], axis=1)
      for key in ('image', 'label', 'index', 'row')
    }
    for step in range(4)
  ]
  _same(joined, whole)


def test_resume_inside_an_epoch_repeats_no_image(folder):
  train = _load(folder).train
  before, after = _take(train, 2), _take(train, 2, start=2)
  assert len(set(_names(before + after))) == N
  # Stopped on one process, gone on with on two.
  parts = [
    _take(train, 2, start=2, process_index=p, process_count=2) for p in (0, 1)
  ]
  assert set(_names(parts[0] + parts[1])) == set(_names(after))


SHARD = """
import sys
from jax_robust_kd import data
if __name__ == '__main__':
  folder, index = sys.argv[1], int(sys.argv[2])
  reading = data.Reading(memory_gb=0.0, workers=1)
  train = data.load(folder, val_size=16, reading=reading).train
  batches = data.train_batches(train, batch_size=12, seed=3, start_step=0,
                               process_index=index, process_count=2)
  for _, batch in zip(range(4), batches):
    print(*batch['image'][..., 0, 0, 0].ravel())
"""


def _python(code, *argv):
  return subprocess.Popen(
    [sys.executable, '-c', code, *map(str, argv)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )


def test_two_processes_on_one_machine_read_disjoint_shards(folder):
  running = [_python(SHARD, folder, index) for index in (0, 1)]
  found = []
  for process in running:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found.append(set(map(int, out.split())))
  assert len(found[0]) == len(found[1]) == N // 2
  assert not found[0] & found[1]


# Faults.


def test_a_killed_worker_is_a_clear_error_and_loses_nothing(folder):
  train = _load(folder, workers=2).train
  batches = data.train_batches(train, batch_size=4, seed=3, start_step=0)
  done = [next(batches) for _ in range(3)]
  victim = multiprocessing.active_children()[0]
  os.kill(victim.pid, signal.SIGKILL)
  started = time.monotonic()
  with pytest.raises(RunError, match='exit code -9.*fewer data.workers') as e:
    done += list(itertools.islice(batches, 1000))
  assert time.monotonic() - started < 30
  assert '\n' not in str(e.value)
  assert not multiprocessing.active_children()
  rest = _take(train, 3, start=len(done), batch_size=4)
  whole = _take(_load(folder).train, len(done) + 3, batch_size=4)
  _same(whole, done + rest)


ENDLESS = """
import multiprocessing, sys, time
from jax_robust_kd import data
if __name__ == '__main__':
  reading = data.Reading(memory_gb=0.0, workers=2)
  train = data.load(sys.argv[1], val_size=16, reading=reading).train
  batches = data.train_batches(train, batch_size=12, seed=3, start_step=0)
  next(batches)
  print(*(child.pid for child in multiprocessing.active_children()), flush=True)
  time.sleep(100)
"""


def _alive(pid):
  try:
    return Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
  except OSError:
    return False


@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs /proc')
def test_workers_end_with_a_killed_run(folder):
  process = _python(ENDLESS, folder)
  pids = process.stdout.readline().split()
  assert len(pids) == 2 and all(map(_alive, pids))
  process.kill()
  process.communicate()
  deadline = time.monotonic() + 20
  while any(map(_alive, pids)) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not any(map(_alive, pids))


def test_workers_leave_the_accelerator_alone():
  """What a worker imports must not claim devices: a GPU's memory, say."""
  process = _python(
    'import jax_robust_kd.data, jax._src.xla_bridge as bridge\n'
    'print(bridge.backends_are_initialized())'
  )
  assert process.communicate()[0] == 'False\n'


def _file(row):
  """Name and own number of the image at a place in the training split."""
  label, place = divmod(int(ORDER[row]), 32)
  return f'train/{("ant", "bee")[label]}/{place:02d}.png', 2 * place + label


VICTIM, NUMBER = _file(5)


def _damage(folder, file):
  path = folder / file
  path.write_bytes(path.read_bytes()[:60])
  return str(path)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_damaged_image_stops_the_run(folder, tmp_path, workers):
  train = _load(_copy(folder, tmp_path), workers=workers).train
  name = _damage(tmp_path, VICTIM)
  with pytest.raises(UserError, match='the image is damaged') as error:
    _take(train, 4)
  assert str(error.value).startswith(f'{name}: ')
  assert 'set data.damaged=skip' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_damaged_image_is_skipped_and_named(folder, tmp_path, capfd):
  train = _load(_copy(folder, tmp_path), damaged='skip').train
  name = _damage(tmp_path, VICTIM)
  for memory_gb in (0.0, 8.0):
    if memory_gb:
      train = _load(tmp_path, damaged='skip', memory_gb=memory_gb).train
    assert NUMBER not in _names(_take(train, 8, batch_size=6))
    message = capfd.readouterr().err
    assert message.count(f'skipped: {name}: the image is damaged') == 1


def test_only_the_next_image_of_the_set_takes_its_place(folder, tmp_path):
  _damage(_copy(folder, tmp_path), VICTIM)
  whole = _load(folder).train
  skipped = _load(tmp_path, damaged='skip').train
  first, second = _take(whole, 4), _take(skipped, 4)
  expected = np.where(_names(first) == NUMBER, _file(6)[1], _names(first))
  assert np.any(expected != _names(first))
  np.testing.assert_array_equal(expected, _names(second))


def test_a_damaged_validation_image(folder, tmp_path, capfd):
  name = _damage(_copy(folder, tmp_path), _file(60)[0])
  with pytest.raises(UserError, match='the image is damaged'):
    _load(tmp_path)
  assert len(_load(tmp_path, damaged='skip').val.label) == 15
  assert f'skipped: {name}' in capfd.readouterr().err


def test_evaluation_skips_no_image(folder, tmp_path):
  name = _damage(_copy(folder, tmp_path), 'test/bee/03.png')
  for memory_gb in (0.0, 8.0):
    with pytest.raises(UserError, match='the image is damaged') as error:
      test = _load(tmp_path, damaged='skip', memory_gb=memory_gb).test
      _ = test.image[np.arange(len(test.label))]
    assert str(error.value).startswith(name)
    assert 'data.damaged' not in str(error.value)


def test_every_image_damaged(folder, tmp_path):
  _copy(folder, tmp_path)
  for file in tmp_path.glob('train/*/*.png'):
    file.write_bytes(file.read_bytes()[:60])
  with pytest.raises(UserError, match='every image is damaged'):
    _load(tmp_path, damaged='skip')


def test_an_image_that_is_gone(folder, tmp_path):
  train = _load(_copy(folder, tmp_path)).train
  (tmp_path / VICTIM).unlink()
  with pytest.raises(UserError, match=f'{VICTIM}: .*No such file'):
    _take(train, 4)


# Decoding.


def _encode(pixels, kind='PNG', **kwargs):
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, kind, **kwargs)
  return out.getvalue()


def test_images_are_fitted_as_robustbench_does():
  """Resize(256), CenterCrop(224), bilinear, with torchvision's rounding."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (300, 401, 3), np.uint8)
  found = decode_lib.decode('x', _encode(pixels), (224, 224, 3), fit=True)
  resized = Image.fromarray(pixels).resize(
    (int(256 * 401 / 300), 256), Image.Resampling.BILINEAR
  )
  top, left = round((256 - 224) / 2), round((resized.width - 224) / 2)
  expected = np.asarray(resized)[top : top + 224, left : left + 224]
  np.testing.assert_array_equal(found, expected)


def test_images_of_the_size_stay_as_they_are():
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  found = decode_lib.decode('x', _encode(pixels), (8, 8, 3), fit=True)
  np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK'])
def test_any_eight_bit_image_becomes_red_green_blue(mode):
  image = Image.new('RGB', (4, 4), (255, 255, 255)).convert(mode)
  out = io.BytesIO()
  image.save(out, 'JPEG' if mode == 'CMYK' else 'PNG')
  found = decode_lib.decode('x', out.getvalue(), (4, 4, 3))
  assert found.shape == (4, 4, 3) and found.min() == 255


def test_streaming_without_grain(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'grain', None)
  with pytest.raises(UserError, match='pip install grain'):
    _take(_load(folder).train, 1)


# A whole run.


@pytest.fixture(scope='module')
def digits_folder(digits, tmp_path_factory):
  root = tmp_path_factory.mktemp('digits')
  for part, split, count in (
    ('train', digits.train, 96),
    ('test', digits.test, 40),
  ):
    for place in range(count):
      file = root / part / str(split.label[place]) / f'{place}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(split.image[place, ..., 0]).save(file)
  return root


def _run(folder, workdir, *options):
  return main.main(
    [
      'main',
      '--config=configs/pgd_at.py:digits',
      f'--config.data.name={folder}',
      '--config.data.val_size=32',
      '--config.data.batch_size=16',
      '--config.data.memory_gb=0.0',
      '--config.data.workers=2',
      '--config.student.width=4',
      '--config.optimizer.epochs=8',
      '--config.train_attack.num_steps=1',
      '--config.validation.every_epochs=8',
      '--config.validation.attack=fgsm',
      "--config.eval.suite=('fgsm',)",
      '--config.eval.batch_size=20',
      '--config.save.every_steps=4',
      '--config.log_every=1',
      f'--workdir={workdir}',
      *options,
    ]
  )


def test_a_run_whose_worker_dies_can_go_on(
  digits_folder, tmp_path, monkeypatch, capfd
):
  """Also: it trains as from memory, and stopping is not a traceback."""
  monkeypatch.chdir(ROOT)
  # One folder of compiled programs for all three runs.
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'compiled'))
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'compiled'))
  killed = []

  def kill_at_step_5(point, path=None, record=None, **facts):
    if point != 'logged' or path.name != 'metrics.jsonl':
      return
    if record['step'] == 5 and not killed:
      killed.append(multiprocessing.active_children()[0].pid)
      os.kill(killed[0], signal.SIGKILL)

  monkeypatch.setattr(faults, '_watchers', [])
  faults.watch(kill_at_step_5)
  assert _run(digits_folder, tmp_path / 'killed') == 1
  assert 'stopped: a process that decodes' in capfd.readouterr().err
  fewer = '--config.data.workers=1'
  assert _run(digits_folder, tmp_path / 'killed', fewer) == 0
  assert 'going on from step' in capfd.readouterr().out
  whole = _run(digits_folder, tmp_path / 'whole', '--config.data.memory_gb=1.0')
  assert whole == 0
  one, other = (
    (tmp_path / name / 'metrics.jsonl').read_text()
    for name in ('killed', 'whole')
  )
  assert one == other and one.count('\n') == 32
