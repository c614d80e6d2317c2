"""When a result is read again: all that decides flags counts, nothing else."""

import hashlib
import importlib
import shutil
import sys

from helpers.saved_runs import save_run
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import data, job, networks
from jax_robust_kd.attacks import Budget
from jax_robust_kd.config import load_config
from jax_robust_kd.core import Output
from jax_robust_kd.evaluation import evaluate as evaluate_lib
from jax_robust_kd.evaluation import store
from jax_robust_kd.evaluation.run import attack, evaluate_run
from jax_robust_kd.runtime.files import read_json

CLEAN = {'clean-0.npz'}  # without an attack there is little to compile
TINY = {'name': 'small_resnet', 'depth': 8, 'width': 4}


@pytest.fixture
def evaluate(tmp_path, digits):
  """Evaluates a run with random weights; returns which units were computed."""
  save_run(tmp_path, digits, student=TINY)
  network = networks.load_network(str(tmp_path), digits)
  folder, known = tmp_path / 'attacked', {}

  def run(
    image=digits.test.image[:12],
    label=digits.test.label[:12],
    network=network,
    **changes,
  ):
    c = job.copy(load_config('configs/pgd_at.py:digits'))
    c.eval.update(suite=(), batch_size=4)
    for key, value in changes.items():
      group, _, name = key.partition('_')
      if name:
        c[group][name] = value
      else:
        c[group] = value
    attack(c, tmp_path, 'x', network, data.Split(image, label))
    before = dict(known)
    known.update({p.name: p.stat().st_mtime_ns for p in folder.iterdir()})
    return {name for name, time in known.items() if before.get(name) != time}

  assert run() == CLEAN
  return run


def test_the_same_evaluation_is_read(evaluate):
  assert not evaluate()


def test_where_the_images_come_from_does_not_count(evaluate):
  assert not evaluate(data_workers=0)
  assert not evaluate(data_memory_gb=1.0)


def test_a_suite_that_grows_keeps_what_is_done(evaluate):
  assert not CLEAN & evaluate(eval_suite=('square-1',))


def test_other_images_of_the_same_name_are_attacked_again(evaluate, digits):
  image = digits.test.image[:12].copy()
  image[5, 2, 3] ^= 1
  assert evaluate(image) == CLEAN
  label = digits.test.label[:12].copy()
  label[[3, 4]] = label[[4, 3]]
  assert label[3] != label[4]
  assert evaluate(image, label) == CLEAN


@pytest.mark.parametrize(
  'changes',
  [
    {'seed': 1},
    {'eval_epsilon': '0.01', 'eval_step_size': '0.01'},
    {'eval_batch_size': 2},
    {'eval_attack_precision': 'bfloat16'},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_what_decides_flags_counts(evaluate, changes):
  assert evaluate(**changes) == CLEAN


def copy_package(folder):
  """Copies the code that decides flags."""
  for name in store._CODE:
    source, target = store._ROOT / name, folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
      shutil.copytree(
        source, target, ignore=shutil.ignore_patterns('__pycache__')
      )
    else:
      shutil.copy(source, target)
  return folder


def test_prose_does_not_count_and_code_does(evaluate, tmp_path, monkeypatch):
  folder = copy_package(tmp_path / 'package')
  path = folder / 'attacks' / 'gradient.py'
  source = path.read_text()
  # One comment more, another docstring, another layout.
  edited = source.replace('One step of length epsilon', 'A single step', 1)
  edited = edited.replace('\n\n\ndef ', '\n\n\n# Why.\ndef ', 1)
  edited = edited.replace("  'linf', 'l2'", "  'linf',\n 'l2'")
  assert edited != source
  path.write_text(edited)
  (folder / 'compare').mkdir()
  (folder / 'compare' / 'new.py').write_text('x = 1\n')
  monkeypatch.setattr(store, '_ROOT', folder)
  assert not evaluate()
  path.write_text(source.replace("init='zero'", "init='uniform'", 1))
  store.code_sha256.cache_clear()
  assert evaluate() == CLEAN
  store.code_sha256.cache_clear()


def test_equal_weights_in_another_module_are_attacked_again(
  evaluate, tmp_path, digits
):
  network = networks.load_network(str(tmp_path), digits)
  module = network.module.clone(mean=(0.1,))
  assert evaluate(network=network._replace(module=module)) == CLEAN


def test_the_source_of_ones_own_attack_counts(tmp_path, monkeypatch):
  """And what was kept of the others stays."""
  split = data.Split(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32))
  victim = evaluate_lib.make_victim(
    lambda variables, image, mode: Output(
      jnp.stack([1 - jnp.mean(image, (1, 2, 3)), jnp.zeros(len(image))], 1),
      {},
      {},
    ),
    {},
  )
  monkeypatch.syspath_prepend(tmp_path)
  path, folder = tmp_path / 'mine_alone.py', tmp_path / 'attacked'
  budget = Budget('linf', 0.1, 0.1)
  settings = evaluate_lib.Settings(('mine_alone:nothing',), budget, 0, 4)

  def run(text):
    """Writes the module, attacks, and returns when units were computed."""
    path.write_text(text)
    sys.modules.pop('mine_alone', None)
    importlib.invalidate_caches()
    evaluate_lib.evaluate_suite(victim, split, settings, store.Folder(folder))
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}

  source = 'def attack(rng, f, image, label, budget):\n  return image\n\n\n'
  source += 'def nothing():\n  return attack\n'
  first = run(source)
  assert first.keys() == {'clean-0.npz', 'nothing-0.npz'}
  assert run(source) == first
  changed = run(source.replace('return image', 'return image + 0.05'))
  assert changed['clean-0.npz'] == first['clean-0.npz']
  assert changed['nothing-0.npz'] != first['nothing-0.npz']


def test_the_digest_of_images_by_hand(monkeypatch):
  monkeypatch.setattr(store, '_CHUNK', 2)
  image = np.arange(5 * 2 * 3 * 1, dtype=np.uint8).reshape(5, 2, 3, 1)
  label = np.array([0, 1, 2, 3, 258])
  text = b'(5, 2, 3, 1) uint8' + image.tobytes()
  text += label.astype('<i4').tobytes()
  split = data.Split(image, label)
  assert store.data_sha256(split) == hashlib.sha256(text).hexdigest()


def test_the_digest_of_images_is_in_the_card(tmp_path, digits):
  save_run(tmp_path, digits, student=TINY)
  c = job.copy(load_config('configs/pgd_at.py:digits'))
  c.eval.update(suite=('square-1',), num_examples=8, batch_size=4)
  evaluate_run(c, tmp_path, 'x', digits)
  card = read_json(tmp_path / 'results.json')
  test = data.Split(digits.test.image[:8], digits.test.label[:8])
  assert card['data_sha256'] == store.data_sha256(test)
