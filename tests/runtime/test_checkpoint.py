"""Checkpoints: bitwise, verified, never half, never silently lost."""

import resource
import shutil

import jax
import numpy as np
import optax
import pytest

from jax_robust_kd.core import RunError, TrainState, UserError
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.training import averages
from jax_robust_kd.training.step import create_state

# Orbax's event loop is closed when a damaged file ends a read.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)
RECORD = {'best': {'step': 1, 'val_robust': 0.1 + 0.2}, 'num_classes': 10}


def make_state(step: int, size: int = 50) -> TrainState:
  """A state with all its parts, each leaf random, rounding visible."""
  rng = np.random.default_rng(step)
  params = {
    'conv': {'kernel': rng.normal(size=(3, 3, 1, 4))},
    'head': {'kernel': rng.normal(size=(4, size)), 'bias': np.zeros(size)},
  }
  stats = {'norm': {'mean': rng.normal(size=4), 'var': np.full(4, 1e-40)}}
  variables = jax.tree.map(np.float32, {'params': params, 'batch_stats': stats})
  state = create_state(
    seed=2**32 - 1,
    variables=variables,
    heads={'proj': np.float32(rng.normal(size=(2, 3)))},
    tx=optax.chain(optax.clip(1.0), optax.adamw(lambda n: 0.1 / (n + 1))),
    average=averages.ema(0.9),
  )
  noisy = jax.tree.map(
    lambda x: np.asarray(x + rng.normal(size=x.shape).astype(x.dtype)), state
  )
  return noisy.replace(step=np.int32(step), seed=np.uint32(2**32 - 1))


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def save_steps(workdir, *steps, keep=2, size=50):
  folder = checkpoint.open_folder(workdir, 'last', keep)
  for step in steps:
    checkpoint.save(folder, step, make_state(step, size), RECORD)
    checkpoint.wait(folder)
  folder.close()


def restore(workdir, template=True):
  folder = checkpoint.open_folder(workdir, 'last', 2)
  try:
    return checkpoint.restore(folder, make_state(0) if template else None)
  finally:
    folder.close()


def on_disk(workdir) -> list[str]:
  return sorted(p.name for p in (workdir / 'checkpoints/last').iterdir())


def content(workdir) -> dict:
  files = (p for p in sorted(workdir.rglob('*')) if p.is_file())
  return {p.relative_to(workdir): p.read_bytes() for p in files}


def test_a_state_comes_back_bitwise(tmp_path):
  save_steps(tmp_path, 7)
  state, record = restore(tmp_path)
  assert_same(state, make_state(7))
  assert record == RECORD


def test_a_network_is_read_without_knowing_its_shape(tmp_path):
  save_steps(tmp_path, 7)
  state, _ = restore(tmp_path, template=False)
  expected = make_state(7)
  assert_same(state['params'], expected.params)
  assert_same(state['batch_stats'], expected.batch_stats)
  assert_same(state['ema_params'], expected.ema_params)
  assert state['step'] == 7


def test_an_empty_folder_has_nothing(tmp_path):
  assert restore(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
  save_steps(tmp_path, 1, 2, 3, 4, 5, keep=2)
  assert on_disk(tmp_path) == ['4', '5']
  assert_same(restore(tmp_path)[0], make_state(5))


def flip(path, where: float):
  """Inverts the bits of one byte."""
  data = bytearray(path.read_bytes())
  data[int(where * (len(data) - 1))] ^= 0xFF
  path.write_bytes(data)


DAMAGE = {
  'first byte flipped': lambda p: flip(p, 0.0),
  'a byte flipped': lambda p: flip(p, 0.4),
  'middle byte flipped': lambda p: flip(p, 0.5),
  'truncated': lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
  'emptied': lambda p: p.write_bytes(b''),
  'deleted': lambda p: p.unlink(),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damage_never_goes_unnoticed(kind, tmp_path, capsys):
  """In any file: the step is skipped and named, or nothing was lost."""
  save_steps(tmp_path / 'whole', 1, 2)
  files = [f for f in content(tmp_path / 'whole') if f.parts[2] == '2']
  files = [f for f in files if (tmp_path / 'whole' / f).stat().st_size]
  skipped = set()
  for number, file in enumerate(files):
    copy = tmp_path / f'copy{number}'
    shutil.copytree(tmp_path / 'whole', copy)
    DAMAGE[kind](copy / file)
    state, record = restore(copy)
    said = capsys.readouterr().out
    assert record == RECORD
    if int(state.step) == 1:
      assert 'last/2 is damaged' in said, (file, said)
      assert_same(state, make_state(1))
      skipped.add(file)
    else:  # a file, or a byte, that restoring does not look at
      assert said == '', (file, said)
      assert_same(state, make_state(2))
    shutil.rmtree(copy)
  if 'flipped' not in kind:  # the other test shows that flips are noticed
    assert {f for f in files if f.parts[-2] == 'd'} & skipped
    assert {f for f in files if f.parts[3] == 'record'} & skipped


def test_flipped_numbers_are_noticed(tmp_path, capsys):
  """The file that holds most of them, flipped at many places.

  Orbax lays it out differently each time, and a few of its bytes belong to
  nothing: there all must have come back.
  """
  save_steps(tmp_path / 'whole', 1, 2, size=500)
  files = [f for f in content(tmp_path / 'whole') if f.parts[2] == '2']
  largest = max(files, key=lambda f: (tmp_path / 'whole' / f).stat().st_size)
  noticed = 0
  for place in np.linspace(0.05, 0.95, 10):
    copy = tmp_path / 'copy'
    shutil.copytree(tmp_path / 'whole', copy)
    flip(copy / largest, place)
    folder = checkpoint.open_folder(copy, 'last', 2)
    state, _ = checkpoint.restore(folder, make_state(0, 500))
    folder.close()
    step = int(state.step)
    assert_same(state, make_state(step, 500))
    assert ('last/2 is damaged' in capsys.readouterr().out) == (step == 1)
    noticed += step == 1
    shutil.rmtree(copy)
  assert noticed >= 5


def test_an_altered_record_is_noticed(tmp_path):
  """Orbax stores it as plain JSON: a changed digit still reads."""
  save_steps(tmp_path, 1, 2)
  path = tmp_path / 'checkpoints/last/2/record/metadata'
  text = path.read_text()
  assert text.count('0.30000000000000004') == 1
  path.write_text(text.replace('0.30000000000000004', '0.90000000000000004'))
  assert int(restore(tmp_path)[0].step) == 1


def test_when_none_verifies_nothing_is_overwritten(tmp_path):
  save_steps(tmp_path, 1, 2)
  for path in (tmp_path / 'checkpoints/last').rglob('metadata'):
    flip(path, 0.5)
  before = content(tmp_path)
  with pytest.raises(UserError, match=r'\[2, 1\].*--workdir'):
    restore(tmp_path)
  assert content(tmp_path) == before


def test_a_damaged_step_is_written_again(tmp_path, capsys):
  """A run that goes on from step 1 must end with a whole step 2."""
  save_steps(tmp_path, 1, 2)
  flip(tmp_path / 'checkpoints/last/2/record/metadata', 0.5)
  assert int(restore(tmp_path)[0].step) == 1
  assert 'damaged' in capsys.readouterr().out
  save_steps(tmp_path, 2)
  assert_same(restore(tmp_path)[0], make_state(2))
  assert capsys.readouterr().out == ''


def test_a_step_before_the_newest_can_be_saved(tmp_path):
  """Orbax alone would silently not write it."""
  save_steps(tmp_path, 9)
  save_steps(tmp_path, 4)
  assert on_disk(tmp_path) == ['4']
  assert_same(restore(tmp_path)[0], make_state(4))


@pytest.fixture
def full_disk():
  """No file may grow beyond 1 MB until the returned function is called."""
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def lift():
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

  yield (
    (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))),
    lift,
  )
  lift()


def test_a_full_disk_names_the_last_whole_step(tmp_path, full_disk):
  fill, lift = full_disk
  save_steps(tmp_path, 1)
  folder = checkpoint.open_folder(tmp_path, 'last', 2)
  fill()
  with pytest.raises(RunError, match='step 1 is whole') as error:
    checkpoint.save(folder, 2, make_state(2, size=200_000), RECORD)
    checkpoint.wait(folder)
  lift()
  folder.close()
  assert '\n' not in str(error.value)
  assert_same(restore(tmp_path)[0], make_state(1))
  save_steps(tmp_path, 2)  # with space again, the same step can be saved
  assert on_disk(tmp_path) == ['1', '2']


def test_a_failed_save_surfaces_at_the_next_one(tmp_path, full_disk):
  """Saving is asynchronous: the loop does not wait for it."""
  fill, lift = full_disk
  folder = checkpoint.open_folder(tmp_path, 'last', 2)
  fill()
  with pytest.raises(RunError, match='none is whole'):
    checkpoint.save(folder, 1, make_state(1, size=200_000), RECORD)
    checkpoint.save(folder, 2, make_state(2, size=200_000), RECORD)
  lift()
  folder.close()


def test_a_half_written_step_is_ignored_and_removed(tmp_path):
  save_steps(tmp_path, 1)
  last = tmp_path / 'checkpoints/last'
  shutil.copytree(last / '1', last / '2.orbax-checkpoint-tmp')
  next((last / '2.orbax-checkpoint-tmp').rglob('metadata')).unlink()
  assert_same(restore(tmp_path)[0], make_state(1))
  save_steps(tmp_path, 2)
  assert on_disk(tmp_path) == ['1', '2']


@pytest.mark.parametrize(
  'other',
  [
    np.zeros((2, 3), np.int32),
    np.zeros((3, 2), np.float32),
    np.zeros(6, np.float32),
    np.full((2, 3), -0.0, np.float32),
    np.full((2, 3), 1e-45, np.float32),
  ],
  ids=['dtype', 'shape', 'rank', 'sign', 'last bit'],
)
def test_digest_covers(other):
  zeros = np.zeros((2, 3), np.float32)
  assert checkpoint.digests({'x': zeros}) == checkpoint.digests({'x': zeros})
  assert checkpoint.digests({'x': zeros}) != checkpoint.digests({'x': other})
  assert checkpoint.tree_sha256({'x': zeros}) != checkpoint.tree_sha256(
    {'x': other}
  )


def test_the_weights_digest_covers_their_names():
  a, b = np.zeros(3), np.ones(3)
  assert checkpoint.tree_sha256({'x': a, 'y': b}) != checkpoint.tree_sha256(
    {'x': b, 'y': a}
  )
