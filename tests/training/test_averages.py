"""Averaged weights against NumPy; the step that keeps them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_robust_kd import config
from jax_robust_kd.core import AXIS, Batch, LossOutput, Method, Output
from jax_robust_kd.training import build
from jax_robust_kd.training.averages import ema, swa
from jax_robust_kd.training.step import Recipe, create_state, train_step

WALK = np.random.default_rng(0).normal(size=(40, 3)).cumsum(axis=0)


def along(average, walk):
  """The average after each step of a walk, from its first point."""
  update = jax.jit(average.update)
  kept, found = {'w': jnp.asarray(walk[0])}, []
  for step, w in enumerate(walk):
    kept = update(kept, {'w': jnp.asarray(w)}, step)
    found.append(kept['w'])
  return np.array(found)


def test_ema_weighs_each_step_by_the_decays_after_it():
  decays = np.minimum(0.9, (1.0 + np.arange(40)) / (10.0 + np.arange(40)))
  assert decays[0] == 0.1 and decays[-1] < 0.9  # still warming up at 40
  found = along(ema(0.7), WALK)
  decays = np.minimum(0.7, decays)
  for n in (1, 5, 40):
    later = np.append(np.cumprod(decays[:n][::-1])[::-1], 1.0)
    shares = np.append(later[0], (1 - decays[:n]) * later[1:])
    np.testing.assert_allclose(shares.sum(), 1.0)
    expected = shares @ np.concatenate([WALK[:1], WALK[:n]])
    np.testing.assert_allclose(found[n - 1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('start, every', [(10, 7), (0, 1), (39, 5)])
def test_swa_is_the_plain_mean_of_an_epochs_weights(start, every):
  found = along(swa(start, every), WALK)
  for step in range(40):
    expected = WALK[start : step + 1 : every] if step >= start else WALK[[step]]
    np.testing.assert_allclose(
      found[step], expected.mean(axis=0), rtol=1e-5, atol=1e-5
    )


def test_swa_of_a_config_starts_at_its_share_of_the_run():
  c = config.load_config('configs/pgd_at.py:digits')
  assert build.make_average(c, 20) is None
  c.optimizer.update(epochs=8, swa_start=0.5)
  average = build.make_average(c, 20)
  assert average is not None and average.own_stats
  walk = np.random.default_rng(1).normal(size=(160, 1))
  np.testing.assert_allclose(
    along(average, walk)[-1], walk[80::20].mean(axis=0), rtol=1e-5
  )
  c.optimizer.update(swa_start=0.0, ema_decay=0.9)
  average = build.make_average(c, 20)
  assert average is not None and not average.own_stats


def student(variables, image, mode):
  """Mean pixel times a weight; its running average is of its own output."""
  logits = image.mean(axis=(1, 2, 3))[:, None] * variables['params']['w']
  stats = variables['batch_stats']
  if mode == 'train':
    stats = {'mean': 0.9 * stats['mean'] + 0.1 * logits.mean()}
  return Output(logits, {}, stats)


def steps_of(average, images, rate=0.2):
  """States after steps of d loss / d w = mean pixel, on two devices."""

  def loss(ctx, batch, adv):
    out = ctx.student(adv)
    return LossOutput(out.logits[:, 0].mean(), out.batch_stats, {})

  def augment(key, index, image, label):
    del key, index
    return Batch(image / 255.0, jax.nn.one_hot(label, 2))

  # The inner problem moves the images: averages must see the clean ones.
  method = Method(loss, lambda r, c, b, m: 0.5 * b.image, teachers=())
  tx = optax.sgd(rate)
  recipe = Recipe(
    method, lambda *a: None, augment, student, {}, tx, 'eval', 100, average
  )
  variables = {
    'params': {'w': jnp.ones(2)},
    'batch_stats': {'mean': jnp.zeros(())},
  }
  state = create_state(seed=0, variables=variables, tx=tx, average=average)
  step = jax.jit(
    jax.vmap(
      partial(train_step, recipe),
      in_axes=(None, None, 0),
      out_axes=None,
      axis_name=AXIS,
    )
  )
  found = []
  for image in images:
    numbers = jnp.zeros(image.shape[:2], jnp.int32)
    batch = {k: numbers for k in ('label', 'index', 'row')}
    state, _ = step(state, {}, {'image': image, **batch})
    found.append(state)
  return found


def test_swa_keeps_running_averages_of_its_own():
  """Replayed in NumPy: those of the averaged network on the clean images."""
  images = np.random.default_rng(2).integers(0, 256, (9, 2, 3, 2, 2, 1))
  found = steps_of(swa(start=3, every=2), images.astype(np.uint8))
  w, mean, kept, own = 1.0, 0.0, [], 0.0
  for i, image in enumerate(images):
    pixel = image.mean() / 255.0
    # The live student sees half the image, by the weights before the step.
    w_before, w = w, w - 0.2 * 0.5 * pixel
    mean = 0.9 * mean + 0.1 * 0.5 * pixel * (w_before + 1.0) / 2
    if i < 3:
      averaged, own = w, mean
    else:
      kept += [w] if (i - 3) % 2 == 0 else []
      averaged = np.mean(kept)
      own = 0.9 * own + 0.1 * pixel * (averaged + 1.0) / 2
    np.testing.assert_allclose(found[i].params['student']['w'][0], w, rtol=1e-5)
    np.testing.assert_allclose(found[i].batch_stats['mean'], mean, rtol=1e-5)
    np.testing.assert_allclose(found[i].ema_params['w'][0], averaged, rtol=1e-5)
    np.testing.assert_allclose(found[i].ema_stats['mean'], own, rtol=1e-5)
  assert len(kept) == 3


def test_ema_shares_the_students_running_averages():
  images = np.zeros((2, 2, 3, 2, 2, 1), np.uint8)
  for state in steps_of(ema(0.9), images):
    assert state.ema_stats == {}
