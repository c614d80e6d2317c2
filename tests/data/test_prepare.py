"""Preparing a set: without TensorFlow, interrupted, twice at once, offline."""

import hashlib
import http.server
import importlib.util
import io
import json
from pathlib import Path
import signal
import subprocess
import sys
import tarfile
import threading

import numpy as np
from PIL import Image
import pytest

from jax_robust_kd import data
from jax_robust_kd.__main__ import main
from jax_robust_kd.core import UserError
from jax_robust_kd.data import cifar, tfds_prepare

pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record')

ROOT = Path(__file__).parents[2]
TRAIN, TEST = 40, 10
URL = 'http://archives.example/cifar-10-binary.tar.gz'


def _records(count, seed, label_bytes=1):
  rng = np.random.default_rng(seed)
  records = rng.integers(0, 256, (count, label_bytes + 3072), np.uint8)
  records[:, :label_bytes] = np.arange(count)[:, None] % 10
  return records


def _pixels(records):
  return records[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _write_archive(folder, name, parts):
  """Writes parts, name -> bytes, as one of the two archives is built."""
  archive = cifar.ARCHIVES[name]
  path = folder / archive.url.rpartition('/')[2]
  folder.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w:gz') as tar:
    for part, content in parts.items():
      info = tarfile.TarInfo(f'{archive.folder}/{part}')
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return archive._replace(
    url=URL,
    sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    num_train=TRAIN,
    num_test=TEST,
  )


@pytest.fixture
def archives(tmp_path, monkeypatch):
  """A folder with a small CIFAR-10 archive, taken for the published one."""
  train = _records(TRAIN, 0)
  parts = {
    f'data_batch_{i}.bin': train[8 * i - 8 : 8 * i].tobytes()
    for i in range(1, 6)
  }
  parts['test_batch.bin'] = _records(TEST, 1).tobytes()
  parts['batches.meta.txt'] = '\n'.join('abcdefghij').encode() + b'\n\n'
  found = _write_archive(tmp_path / 'archives', 'cifar10', parts)
  monkeypatch.setitem(cifar.ARCHIVES, 'cifar10', found)
  return tmp_path / 'archives'


def _prepare(root, archives='', name='cifar10'):
  options = ['--name', str(name), '--data_dir', str(root)]
  return main(['', 'prepare', *options, '--archive_dir', str(archives)])


def _found(root):
  d = data.load('cifar10', str(root), val_size=4)
  return d, np.concatenate([d.train.image, d.val.image])


# CIFAR without TensorFlow.


def test_cifar10_from_its_archive(archives, tmp_path, capsys):
  assert _prepare(tmp_path, archives) == 0
  assert f'{TRAIN} training and {TEST} test' in capsys.readouterr().out
  d, image = _found(tmp_path)
  assert d.class_names == tuple('abcdefghij')
  expected = _pixels(_records(TRAIN, 0))
  order = [int((expected == x).all((1, 2, 3)).argmax()) for x in image]
  assert sorted(order) == list(range(TRAIN))
  # TFDS' own order, which follows from its keys: a slice of a split, such as
  # train[:20], holds the same images as in a set that TFDS prepared.
  assert order != list(range(TRAIN))
  label = np.concatenate([d.train.label, d.val.label])
  np.testing.assert_array_equal(label, np.array(order) % 10)
  assert len(d.test.label) == TEST
  assert 'tensorflow' not in sys.modules
  assert _prepare(tmp_path) == 0
  assert 'unchanged since the first check' in capsys.readouterr().out


def test_cifar100_has_coarse_and_fine_labels(tmp_path, monkeypatch):
  train = _records(TRAIN, 0, label_bytes=2)
  train[:, 0] = 3
  parts = {
    'train.bin': train.tobytes(),
    'test.bin': _records(TEST, 1, label_bytes=2).tobytes(),
    'coarse_label_names.txt': '\n'.join(f'c{i}' for i in range(20)).encode(),
    'fine_label_names.txt': '\n'.join(f'f{i}' for i in range(100)).encode(),
  }
  found = _write_archive(tmp_path / 'archives', 'cifar100', parts)
  name = 'cifar-10-binary.tar.gz'
  (tmp_path / 'archives/cifar-100-binary.tar.gz').rename(
    tmp_path / 'archives' / name
  )
  monkeypatch.setitem(cifar.ARCHIVES, 'cifar100', found)
  assert _prepare(tmp_path, tmp_path / 'archives', 'cifar100') == 0
  d = data.load('cifar100', str(tmp_path), val_size=4)
  assert d.num_classes == 100 and d.class_names[7] == 'f7'
  np.testing.assert_array_equal(np.unique(d.train.label), np.arange(10))


def test_loading_prepares_what_is_missing(archives, tmp_path, monkeypatch):
  monkeypatch.setattr(cifar, '_download', _copy_from(archives))
  assert len(_found(tmp_path)[1]) == TRAIN


def _copy_from(archives):
  def copy(url, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((archives / path.name).read_bytes())

  return copy


BAD_ARCHIVES = {
  'another file': (lambda p: p.write_bytes(b'x'), 'not the published archive'),
  'no file': (lambda p: p.unlink(), 'holds no cifar-10-binary.tar.gz'),
}


@pytest.mark.parametrize('case', BAD_ARCHIVES)
def test_wrong_archives(archives, tmp_path, capsys, case):
  damage, message = BAD_ARCHIVES[case]
  damage(archives / 'cifar-10-binary.tar.gz')
  assert _prepare(tmp_path, archives) == 2
  error = capsys.readouterr().err
  assert message in error and 'Traceback' not in error


def test_wrong_number_of_images(archives, tmp_path, capsys, monkeypatch):
  more = cifar.ARCHIVES['cifar10']._replace(num_train=TRAIN + 1)
  monkeypatch.setitem(cifar.ARCHIVES, 'cifar10', more)
  assert _prepare(tmp_path, archives) == 2
  assert f'the train files hold {TRAIN} images' in capsys.readouterr().err
  assert not list(tmp_path.glob('cifar10/*'))


# Interrupted, and twice at once.

SLOW = """
import os, sys, time
from jax_robust_kd.__main__ import main
from jax_robust_kd.data import cifar
root, archives, sha256, gate = sys.argv[1:]
cifar.ARCHIVES['cifar10'] = cifar.ARCHIVES['cifar10']._replace(
  sha256=sha256, num_train=40, num_test=10)
examples = cifar._examples
def slow(*args):
  print('begun', flush=True)
  end = time.monotonic() + 100
  while not os.path.exists(gate) and time.monotonic() < end:
    time.sleep(0.05)
  yield from examples(*args)
cifar._examples = slow
sys.exit(main(['', 'prepare', '--name=cifar10', '--data_dir=' + root,
                       '--archive_dir=' + archives]))
"""


def _start(root, archives):
  """Starts a process that goes on once there is a file `gate`."""
  sha256 = cifar.ARCHIVES['cifar10'].sha256
  return subprocess.Popen(
    [sys.executable, '-c', SLOW, str(root), str(archives), sha256,
     str(root / 'gate')],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )  # fmt: skip


def test_killed_in_the_middle(archives, tmp_path):
  process = _start(tmp_path, archives)
  assert 'begun\n' in iter(process.stdout.readline, '')
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert list(tmp_path.glob('cifar10/incomplete.*'))
  assert not list(tmp_path.glob('cifar10/3.0.2'))
  assert _prepare(tmp_path, archives) == 0
  assert [p.name for p in tmp_path.glob('cifar10/*')] == ['3.0.2']
  assert len(_found(tmp_path)[1]) == TRAIN


def test_twice_at_once(archives, tmp_path):
  first = _start(tmp_path, archives)
  assert 'begun\n' in iter(first.stdout.readline, '')
  second = _start(tmp_path, archives)
  said = iter(second.stderr.readline, '')
  assert any('waiting: another process prepares cifar10' in x for x in said)
  (tmp_path / 'gate').touch()
  for process in (first, second):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert 'all whole' in out
    assert 'NOT COMPLETE: cifar10 was published with 50000' in out
    assert 'waiting' not in err  # the second has said so, once
  assert len(_found(tmp_path)[1]) == TRAIN


# Downloading.


class _Server(http.server.BaseHTTPRequestHandler):
  """A proxy that knows one file, and can send parts of it."""

  content = b''
  asked: list = []

  def do_GET(self):
    self.asked.append((self.path, self.headers.get('Range')))
    start = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
    self.send_response(206 if start else 200)
    self.send_header('Content-Length', str(len(self.content) - start))
    self.end_headers()
    self.wfile.write(self.content[start:])

  def log_message(self, *args):
    pass


@pytest.fixture
def proxy(archives, monkeypatch):
  _Server.content = (archives / 'cifar-10-binary.tar.gz').read_bytes()
  _Server.asked = []
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Server)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  address = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setenv('http_proxy', address)
  monkeypatch.delenv('no_proxy', raising=False)
  yield _Server
  server.shutdown()
  server.server_close()


def test_download_through_a_proxy(proxy, tmp_path):
  assert _prepare(tmp_path) == 0
  assert proxy.asked == [(URL, None)]
  assert len(_found(tmp_path)[1]) == TRAIN
  assert not list(tmp_path.glob('downloads/*.part'))


def test_an_interrupted_download_goes_on(proxy, tmp_path):
  (tmp_path / 'downloads').mkdir()
  part = tmp_path / 'downloads' / 'cifar-10-binary.tar.gz.part'
  part.write_bytes(proxy.content[:1000])
  assert _prepare(tmp_path) == 0
  assert proxy.asked == [(URL, 'bytes=1000-')]


def test_no_network(archives, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  monkeypatch.delenv('no_proxy', raising=False)
  assert _prepare(tmp_path) == 2
  error = capsys.readouterr().err
  assert 'set https_proxy' in error and '--archive_dir' in error
  assert error.count('\n') == 1


# Other sets of TFDS.


def test_what_to_install_for_other_sets(tmp_path, monkeypatch, capsys):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda p: None if p == 'tensorflow' else find(p),
  )
  assert _prepare(tmp_path, name='svhn_cropped') == 2
  error = capsys.readouterr().err
  assert 'pip install "jax_robust_kd[prepare]"' in error
  assert 'needs TensorFlow' in error and error.count('\n') == 1


class _Builder:
  """Fails as TFDS may: with any error, of many lines."""

  def __init__(self, root):
    self.data_dir, self.data_dir_root = root / 'x' / '1.0.0', root

  def is_prepared(self):
    return False

  def download_and_prepare(self, **kwargs):
    raise ConnectionError('no route to host\nsecond line')


def test_failed_download(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda package: True)
  with pytest.raises(UserError, match='1.0.0 .no route to host.') as error:
    tfds_prepare.prepare_set('x', _Builder(tmp_path))
  assert '\n' not in str(error.value)


# Sets that are only checked.


@pytest.fixture
def folder(tmp_path):
  for part, count in (('train', 6), ('test', 2)):
    for name in ('ant', 'bee'):
      for place in range(count):
        file = tmp_path / 'own' / part / name / f'{place}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(place).integers(0, 256, (9, 9, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(file)
  return tmp_path / 'own'


def test_a_changed_folder_is_noticed(folder, capsys):
  assert _prepare('', name=folder) == 0
  assert '12 training and 4 test images, 2 classes' in capsys.readouterr().out
  kept = json.loads((folder / 'checked.json').read_text())
  assert kept['train']['images'] == 12
  assert _prepare('', name=folder) == 0
  # The same images of the other class: the labels count too.
  one, other = folder / 'train/ant/1.png', folder / 'train/bee/2.png'
  content = one.read_bytes()
  one.write_bytes(other.read_bytes())
  other.write_bytes(content)
  assert _prepare('', name=folder) == 2
  assert 'holds other images than' in capsys.readouterr().err


def test_damaged_images_are_all_named(folder, capsys):
  for file in ('train/ant/3.png', 'test/bee/1.png'):
    (folder / file).write_bytes(b'nothing')
  assert _prepare('', name=folder) == 1
  error = capsys.readouterr().err
  assert 'train/ant/3.png' in error and 'test/bee/1.png' in error
  assert '2 damaged images' in error
  assert not (folder / 'checked.json').exists()


def test_a_compressed_npz_is_unpacked(tmp_path, capsys):
  image = np.arange(60, dtype=np.uint8).reshape(5, 2, 2, 3)
  np.savez_compressed(tmp_path / 'x.npz', image=image, label=np.arange(5))
  assert _prepare('', name=tmp_path / 'x.npz') == 0
  target = tmp_path / 'x_unpacked.npz'
  assert str(target) in capsys.readouterr().out
  extra = data.load_extra(
    str(target), share=0.5, labels='file', shape=(2, 2, 3), num_classes=5
  )
  np.testing.assert_array_equal(extra.split.image, image)
  assert not list(tmp_path.glob('unfinished*'))


def test_wrong_names(tmp_path, capsys):
  for name in ('nowhere.npz', 'no_such_set', './nowhere'):
    assert _prepare(tmp_path, name=name) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
