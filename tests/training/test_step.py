"""The step: what it averages, what it keeps, what it never changes."""

from functools import partial
from types import SimpleNamespace

from helpers.steps import network, small_step, tiny_network
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_robust_kd import data, models, networks
from jax_robust_kd.config import load_config
from jax_robust_kd.core import AXIS, LossOutput, Method, image_keys
from jax_robust_kd.methods import METHODS
from jax_robust_kd.methods.inner_problems import cross_entropy_label
from jax_robust_kd.runtime import checkpoint, parallel
from jax_robust_kd.training import build
from jax_robust_kd.training.averages import ema
from jax_robust_kd.workdir import claim_workdir


def mapped(step):
  return jax.jit(
    jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name=AXIS)
  )


def two_devices(digits, batch_size=16):
  return next(
      data.train_batches(
          digits.train, batch_size=batch_size, seed=0, start_step=0,
          num_local_devices=2,
      )
  )  # fmt: skip


def test_vmap_refuses_what_was_not_averaged(digits):
  """pmap(out_axes=None) would silently return one device's value."""
  setup = small_step(METHODS['pgd_at'](), digits)

  def forgetful(state, teacher_variables, batch):
    state, metrics = setup.step(state, teacher_variables, batch)
    return state, {**metrics, 'mean': jnp.mean(batch['label'] * 1.0)}

  with pytest.raises(ValueError):
    mapped(forgetful)(setup.state, {}, two_devices(digits))


def test_gradients_are_averaged_over_devices(digits):
  """Without BatchNorm's help: a linear loss has a known mean gradient.

  Its slope by the bias of the classifier is the mean label / K, so that each
  device has another one.
  """

  def loss(ctx, batch, adv):
    out = ctx.student(adv)
    label = jnp.argmax(batch.target, axis=-1, keepdims=True)
    value = jnp.mean(label * out.logits)
    return LossOutput(value, out.batch_stats, {})

  tx = optax.sgd(1.0)
  method = Method(loss, teachers=())
  setup = small_step(method, digits, tx=tx, average=None)
  state = setup.state.replace(opt_state=tx.init(setup.state.params))
  batch = two_devices(digits)
  moved, _ = mapped(setup.step)(state, {}, batch)
  before, after = (
    [x for x in jax.tree.leaves(s.params['student']) if x.shape == (10,)]
    for s in (state, moved)
  )
  slopes = batch['label'].mean(axis=1) / 10
  assert abs(slopes[0] - slopes[1]) > 1e-2
  (change,) = (a - b for a, b in zip(before, after, strict=True))
  np.testing.assert_allclose(change, slopes.mean(), atol=1e-6)


def test_attack_moves_no_running_average_and_only_named_passes_do(digits):
  """STYLE: which images move BatchNorm is part of the returned value."""
  setup = small_step(METHODS['pgd_at'](), digits)
  after, _ = mapped(setup.step)(setup.state, {}, setup.batch)
  batch = {k: v[0] for k, v in setup.batch.items()}
  variables = {
    'params': setup.state.params['student'],
    'batch_stats': setup.state.batch_stats,
  }

  @jax.jit
  def one_pass_on_the_adversarial_images():
    key = jax.random.fold_in(jax.random.key(0), 0)
    view = setup.recipe.augment(
      jax.random.fold_in(key, 0), batch['index'], batch['image'], batch['label']
    )
    forward = partial(setup.recipe.student, variables)
    ctx = SimpleNamespace(student=partial(forward, mode='eval'))
    rng = image_keys(jax.random.fold_in(key, 1), batch['index'])
    adv = cross_entropy_label(rng, ctx, view, setup.recipe.maximize)
    return forward(adv, mode='train').batch_stats

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    after.batch_stats,
    one_pass_on_the_adversarial_images(),
  )


def test_attack_modes_see_different_statistics(digits):
  """The values 'eval' and 'batch' of train_attack.bn give other attacks."""
  forward, variables = network(0, 4)
  image = digits.train.image[:8] / np.float32(255)
  stats = variables['batch_stats']
  outputs = {
    mode: jax.jit(partial(forward, mode=mode))(variables, image)
    for mode in models.MODES
  }
  np.testing.assert_array_equal(
    outputs['train'].logits, outputs['batch'].logits
  )
  assert np.abs(outputs['eval'].logits - outputs['batch'].logits).max() > 1e-3
  same = partial(jax.tree.map, np.testing.assert_array_equal)
  same(outputs['batch'].batch_stats, stats)
  same(outputs['eval'].batch_stats, stats)


def test_noise_belongs_to_the_image_not_to_the_device(digits):
  """The same global batch on one and on two devices: the same views."""
  setup = small_step(
      METHODS['pgd_at'](), digits,
      augment=data.make_augment(
          num_classes=10, crop_pad=2, flip=True, cutout=3, mixup_alpha=1.0,
          cutmix_alpha=1.0,
      ),
  )  # fmt: skip
  augment = jax.jit(jax.vmap(setup.recipe.augment, in_axes=(None, 0, 0, 0)))
  views = []
  for batch in (setup.batch, two_devices(digits)):
    view = augment(
      jax.random.key(3), batch['index'], batch['image'], batch['label']
    )
    views.append(np.asarray(view.image).reshape(16, 8, 8, 1))
  np.testing.assert_array_equal(*views)


def test_average_starts_fast_and_ends_at_its_decay():
  average, params = {'w': jnp.zeros(())}, {'w': jnp.ones(())}
  first = ema(0.999).update(average, params, jnp.asarray(0))
  np.testing.assert_allclose(first['w'], 1 - 1 / 10, rtol=1e-6)
  late = ema(0.999).update(average, params, jnp.asarray(10**6))
  np.testing.assert_allclose(late['w'], 0.001, rtol=1e-3)


def test_replicated_state_is_a_copy_and_needs_one_compile(digits):
  """A donated state must not delete the caller's arrays (measured trap)."""
  setup = small_step(METHODS['kd'](), digits)
  step = parallel.pmap_step(setup.step)
  teacher = parallel.replicate(setup.teacher_variables)
  state, _ = step(parallel.replicate(setup.state), teacher, two_devices(digits))
  first = jax.tree.map(np.asarray, setup.state)  # would raise if deleted
  assert int(first.step) == 0 and int(state.step) == 1
  with jax.log_compiles():
    import logging

    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger('jax').addHandler(handler)
    step(state, teacher, two_devices(digits))
    logging.getLogger('jax').removeHandler(handler)
  compiled = [r for r in records if 'Compiling' in r.getMessage()]
  assert not compiled, 'the second step was compiled again'


def test_bfloat16_computes_in_half_and_keeps_weights_in_full(digits):
  forward, variables = tiny_network(0, 4, dtype=jnp.bfloat16)
  setup = small_step(METHODS['trades'](), digits, student=forward)
  del variables  # the same weights as the float32 network's
  out = forward(
    {
      'params': setup.state.params['student'],
      'batch_stats': setup.state.batch_stats,
    },
    digits.test.image[:4] / np.float32(255),
    'eval',
  )
  assert out.logits.dtype == jnp.float32
  assert out.features['stage1'].dtype == jnp.bfloat16
  state, metrics = mapped(setup.step)(setup.state, {}, setup.batch)
  for leaf in jax.tree.leaves((state.params, state.batch_stats)):
    assert leaf.dtype == jnp.float32
  full, _ = mapped(small_step(METHODS['trades'](), digits).step)(
    setup.state, {}, setup.batch
  )
  assert np.isfinite(metrics['loss'])
  change = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), state.params, full.params
  )
  assert 0 < max(jax.tree.leaves(change)) < 0.1


def test_a_loaded_network_keeps_the_normalization_it_was_trained_with(
  digits, tmp_path
):
  """The config's own mean and std win over the data set's, then as now."""
  c = load_config('configs/pgd_at.py:digits')
  c.student = {**c.student.to_dict(), 'mean': (0.5,), 'std': (0.1,)}
  claim_workdir(tmp_path, c)
  trained = build.init_network(c, digits)
  state = {
    'params': {'student': trained.variables['params']},
    'batch_stats': trained.variables['batch_stats'],
    'ema_params': {},
    'ema_stats': {},
    'step': np.zeros((), np.int32),
  }
  folder = checkpoint.open_folder(tmp_path, 'best', 1)
  normalization = {'mean': digits.mean, 'std': digits.std}
  record = {
    'num_classes': 10,
    'normalization': normalization,
    'chosen_by': 'nothing',
  }
  checkpoint.save(folder, 1, jax.tree.map(np.asarray, state), record)
  checkpoint.wait(folder)
  folder.close()
  loaded = networks.load_network(str(tmp_path), digits)
  image = digits.test.image[:2] / np.float32(255)
  logits = [
    jax.jit(partial(n.forward, mode='eval'))(n.variables, image).logits
    for n in (trained, loaded)
  ]
  np.testing.assert_array_equal(*logits)
