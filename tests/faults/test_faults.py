"""A drill: many faults at random moments of a small run, none of them silent.

After each fault the run is started again, to its end. Then it equals the run
that nobody disturbed, bitwise, or the program has said in one sentence why not.
  pytest -m slow -s tests/faults
"""

from collections import Counter
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from helpers import runs
import numpy as np
import pytest

from jax_robust_kd.runtime.files import read_lines

pytestmark = pytest.mark.slow

SEED = 7
# How often each fault happens.
DRILL = {
  'kill -9': 14,
  'SIGTERM': 10,
  'truncated file': 8,
  'flipped bit': 10,
  'full disk': 6,
  'NaN gradient': 4,
  'killed data worker': 4,
  'two runs at once': 4,
}
# What the program may say when it stops, besides 'stopped: ' and 'error: '.
SENTENCES = (
  'asked to end by SIGTERM',
  'could not save a checkpoint',
  'cannot be written',
  'the loss is nan',
  'the grad_norm is nan',
  'the weights are not finite',
  'no checkpoint in',
  'a process that decodes images failed',
  'is in use by process',
)

NAN = """
from functools import partial
import jax, jax.numpy as jnp
from jax_robust_kd.training import run as train
original = train.train_step
def broken(recipe, state, *rest):
  bad = state.step == {step}
  after, values = original(recipe, state, *rest)
  params = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), after.params)
  norm = jnp.where(bad, jnp.nan, values['grad_norm'])
  return after.replace(params=params), {{**values, 'grad_norm': norm}}
train.train_step = broken
"""


class Scene(NamedTuple):
  """Where a fault happens.

  Attributes:
    reference: the undisturbed run.
    argv: of the run.
    rng: of the moments.
  """

  reference: runs.Reference
  argv: list[str]
  rng: np.random.Generator


class Ending(NamedTuple):
  """What became of a run after a fault: sentences, and steps done again."""

  said: list[str]
  lost: int


def begin(scene: Scene) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-m', 'jax_robust_kd.main', *scene.argv],
    env=scene.reference.environment,
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def steps_logged(workdir: Path) -> int:
  lines = read_lines(workdir / 'metrics.jsonl')
  return lines[-1]['step'] if lines else 0


def until_a_moment(scene: Scene, process: subprocess.Popen) -> None:
  """Waits until a random step is logged, and a random time after it."""
  step = int(scene.rng.integers(0, 10))
  workdir = scene.reference.workdir
  while process.poll() is None and steps_logged(workdir) < step:
    time.sleep(0.002)
  time.sleep(float(scene.rng.uniform(0, 1.5 if step in (0, 9) else 0.1)))


def send(number: int):
  def fault(scene: Scene) -> list[str]:
    process = begin(scene)
    until_a_moment(scene, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    # Before the training has begun and after it, SIGTERM ends it like any other
    # program.
    assert process.returncode in (0, 75, -number)
    return errors.splitlines()

  return fault


def damage(change):
  """A file of a checkpoint is changed while no run is there."""

  def fault(scene: Scene) -> list[str]:
    send(signal.SIGKILL)(scene)
    folder = scene.reference.workdir / 'checkpoints'
    files = [p for p in sorted(folder.rglob('*')) if p.is_file()]
    files = [p for p in files if p.stat().st_size]
    if files:
      path = files[scene.rng.integers(len(files))]
      path.write_bytes(change(scene.rng, path.read_bytes()))
    return []

  return fault


def flip(rng, content: bytes) -> bytes:
  place = int(rng.integers(len(content)))
  bit = 1 << int(rng.integers(8))
  return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def truncate(rng, content: bytes) -> bytes:
  return content[: int(rng.integers(len(content)))]


def full_disk(scene: Scene) -> list[str]:
  """Files cannot grow beyond a random size, as on a full disk."""
  size = int(scene.rng.integers(1, 60))
  command = f'trap "" XFSZ; ulimit -f {size}; exec "$@"'
  done = subprocess.run(
    ['bash', '-c', command, 'bash', sys.executable, '-m',
     'jax_robust_kd.main', *scene.argv],
    env=scene.reference.environment, cwd=runs.ROOT, capture_output=True,
    text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode in (0, 1, 2), done.stderr
  return done.stderr.splitlines()


def nan_gradient(scene: Scene) -> list[str]:
  plan = NAN.format(step=int(scene.rng.integers(0, 9)))
  argv, environment = scene.argv, scene.reference.environment
  return runs.run(environment, argv, plan, code=1).stderr.splitlines()


def two_at_once(scene: Scene) -> list[str]:
  first = begin(scene)
  until_a_moment(scene, first)
  second = begin(scene)
  _, errors = second.communicate(timeout=300)
  assert first.wait(timeout=300) == 0
  assert second.returncode in (0, 2)  # 0: the first had just ended
  return errors.splitlines()


def killed_worker(scene: Scene) -> list[str]:
  """One of the processes that decode a streamed set."""
  process = begin(scene)
  until_a_moment(scene, process)
  found = subprocess.run(
    ['pgrep', '-P', str(process.pid)], capture_output=True, text=True
  ).stdout.split()
  for child in found:
    command = Path(f'/proc/{child}/cmdline')
    if command.exists() and b'spawn_main' in command.read_bytes():
      os.kill(int(child), signal.SIGKILL)
  _, errors = process.communicate(timeout=300)
  assert process.returncode in (0, 1), errors
  return errors.splitlines()


FAULTS = {
  'kill -9': send(signal.SIGKILL),
  'SIGTERM': send(signal.SIGTERM),
  'truncated file': damage(truncate),
  'flipped bit': damage(flip),
  'full disk': full_disk,
  'NaN gradient': nan_gradient,
  'killed data worker': killed_worker,
  'two runs at once': two_at_once,
}


def documented(lines: list[str]) -> list[str]:
  """Returns what the program said; fails on a traceback of its own."""
  said = [s for s in lines if s.startswith(('stopped: ', 'error: '))]
  for sentence in said:
    assert any(known in sentence for known in SENTENCES), sentence
  text = '\n'.join(lines)
  assert 'Traceback' not in text, text
  return said


def recover(scene: Scene, said: list[str]) -> Ending:
  """Starts the run again until it is done; compares it."""
  environment, workdir, kept, _ = scene.reference
  before, lost = steps_logged(workdir), 0
  done = begin(scene)
  output, errors = done.communicate(timeout=300)
  said = said + documented(errors.splitlines())
  if done.returncode == 2 and 'no checkpoint in' in errors:
    # The only checkpoint was damaged: it is named, and nothing is touched.
    shutil.rmtree(workdir)
    return Ending(said, before)
  assert done.returncode == 0, errors
  found = re.search(r'going on from step (\d+)', output)
  lost = max(before - int(found[1]), 0) if found else before
  runs.assert_equal_runs(workdir, kept)
  return Ending(said, lost)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
  """The digits from memory, and the same kind of run streamed from a folder."""
  from PIL import Image

  from jax_robust_kd import data

  plain = runs.make_reference(
    tmp_path_factory.mktemp('plain'), JAX_DISABLE_MOST_OPTIMIZATIONS='1'
  )
  digits = data.load('digits').train
  folder = tmp_path_factory.mktemp('images')
  for split in ('train', 'test'):
    for i in range(200):
      label = int(digits.label[i])
      path = folder / split / str(label) / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(digits.image[i, ..., 0]).save(path)
  streamed = (
    f'--config.data.name={folder}',
    '--config.data.memory_gb=0',
    '--config.data.workers=1',
    '--config.data.image_size=8',
  )
  home = tmp_path_factory.mktemp('streamed')
  environment = {
    **runs.make_environment(home),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }
  argv = runs.arguments(home / 'run', 'pgd_at.py:digits', *streamed)
  output = runs.run(environment, argv).stdout
  (home / 'run').rename(home / 'reference')
  other = runs.Reference(environment, home / 'run', home / 'reference', output)
  rng = np.random.default_rng(SEED)
  return (
    Scene(plain, runs.arguments(plain.workdir), rng),
    Scene(other, argv, rng),
  )


def test_drill(scenes, capsys):
  plain, streamed = scenes
  order = [name for name, count in DRILL.items() for _ in range(count)]
  plain.rng.shuffle(order)
  assert len(order) >= 50
  endings: dict[str, list[Ending]] = {name: [] for name in DRILL}
  for number, name in enumerate(order):
    scene = streamed if name == 'killed data worker' else plain
    shutil.rmtree(scene.reference.workdir, ignore_errors=True)
    said = documented(FAULTS[name](scene))
    endings[name].append(recover(scene, said))
    with capsys.disabled():
      print(f'{number + 1:3} {name}: {endings[name][-1]}', flush=True)
  with capsys.disabled():
    print('\n| fault | count | survived | lost steps | said |')
    print('|---|---|---|---|---|')
    for name, found in endings.items():
      said = Counter(
        next(known for known in SENTENCES if known in s)
        for ending in found
        for s in ending.said
      )
      words = ', '.join(f'{text} ({n})' for text, n in said.items())
      lost = [ending.lost for ending in found]
      print(
        f'| {name} | {len(found)} | {len(found)} | {sum(lost)} in all, '
        f'{max(lost)} at most | {words} |'
      )
