"""What is kept of a run, and what stops it."""

import jax.numpy as jnp
import pytest

from jax_robust_kd.core import RunError, TrainState
from jax_robust_kd.runtime import checkpoint, faults
from jax_robust_kd.training.keep import Keeper

STATE = TrainState(
  step=jnp.asarray(1),
  params={'student': {'w': jnp.zeros(2)}, 'heads': {}},
  batch_stats={},
  ema_params={},
  ema_stats={},
  peer_stats={},
  memory={},
  opt_state={},
  seed=jnp.asarray(0, jnp.uint32),
)


@pytest.fixture
def open_keeper(tmp_path):
  opened = []

  def make(go_on=False):
    record = {'chosen_by': 'pgd-10'}
    keeper = Keeper(tmp_path, 'run', 2, go_on=go_on, record=record)
    opened.append(keeper)
    return keeper

  yield make
  for keeper in opened:
    keeper.close()


def accuracy(robust, clean):
  return {'val_robust': robust, 'val_clean': clean, 'loss': 1.0}


def test_the_most_robust_is_kept_then_the_most_accurate(open_keeper, tmp_path):
  keeper = open_keeper()
  kept = []
  for step, (robust, clean) in enumerate(
    [(0.2, 0.5), (0.1, 0.9), (0.2, 0.6), (0.2, 0.6), (0.3, 0.4)], 1
  ):
    keeper.save_best(step, STATE, accuracy(robust, clean))
    kept.append(keeper.best['step'])
  assert kept == [1, 1, 3, 3, 5]
  keeper.wait()
  _, record = checkpoint.read(tmp_path, 'best')
  best = {'step': 5, 'val_robust': 0.3, 'val_clean': 0.4}
  assert record == {'chosen_by': 'pgd-10', 'best': best}


def test_a_run_goes_on_with_its_best_and_its_pending_metrics(
  open_keeper, capsys
):
  keeper = open_keeper()
  assert keeper.restore(STATE) == (STATE, [])
  keeper.save_best(1, STATE, accuracy(0.2, 0.5))
  keeper.save_last(1, STATE, pending=[{'loss': 2.0}])
  keeper.wait()
  again = open_keeper()
  state, pending = again.restore(STATE.replace(step=jnp.asarray(0)))
  assert (int(state.step), pending) == (1, [{'loss': 2.0}])
  assert again.best == keeper.best
  assert capsys.readouterr().out == 'run: going on from step 1\n'


def test_what_is_not_finite_stops_the_run(open_keeper, tmp_path):
  keeper = open_keeper()
  good = {'loss': jnp.asarray(1.5), 'grad_norm': 1.0}
  values = keeper.check_metrics(8, [good, good])
  assert values == [{'loss': 1.5, 'grad_norm': 1.0}] * 2
  bad = {**good, 'grad_norm': jnp.inf}
  with pytest.raises(RunError, match='grad_norm is inf at step 7; there is no'):
    keeper.check_metrics(8, [good, bad, good])
  keeper.check_weights(3, STATE)
  keeper.save_last(3, STATE)
  params = {**STATE.params, 'student': {'w': jnp.asarray([0, jnp.nan])}}
  with pytest.raises(RunError, match='after step 4; the last good .* step 3'):
    keeper.check_weights(4, STATE.replace(params=params))


@pytest.mark.parametrize('go_on', [False, True])
def test_a_save_that_fails(go_on, open_keeper, monkeypatch, capsys):
  def full(name, **facts):
    if name == 'save' and facts['step'] == 2:
      raise RunError('the disk is full')

  monkeypatch.setattr(faults, '_watchers', [full])
  keeper = open_keeper(go_on)
  keeper.save_best(1, STATE, accuracy(0.1, 0.5))
  before = keeper.best
  if go_on:
    keeper.save_best(2, STATE, accuracy(0.2, 0.5))
    words = 'run: the disk is full; going on without it\n'
    assert capsys.readouterr().out == words
    keeper.save_best(3, STATE, accuracy(0.15, 0.5))  # better than what is kept
    assert keeper.best['step'] == 3
  else:
    with pytest.raises(RunError, match='the disk is full'):
      keeper.save_best(2, STATE, accuracy(0.2, 0.5))
    assert keeper.best == before
