"""What every entry of METHODS must do; a new entry is tested without a test.

All starts in the middle of training, where no term waits for its begin.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

from helpers.steps import Setup, small_step
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import data
from jax_robust_kd.attacks.packing import check_inside
from jax_robust_kd.core import AXIS, LossOutput, Method, gather, no_memory
from jax_robust_kd.methods import METHODS
from jax_robust_kd.runtime import checkpoint, parallel
from jax_robust_kd.training.contract import check_method, on_one_device
from jax_robust_kd.training.step import train_step

# Arguments that make another program of a method, or a smaller one of IGAM's
# discriminator; the others have defaults.
VARIANTS: dict[str, tuple[str, dict]] = {
  'gacd, bank, both': (
    'gacd',
    dict(negatives='bank', direction='both', bank_size=48),
  ),
  'igam': ('igam', dict(layers=2, channels=2)),
  'iad II': (
    'iad',
    dict(version='II', robust_weight=0.5, clean_weight=0.25)
    | dict(begin=0.2, weigh_teacher=True),
  ),
}
CASES = {name: (name, {}) for name in sorted(METHODS)} | VARIANTS
BEGIN = 50  # of the 100 steps of a `small_step`


class Built(NamedTuple):
  """A small step of a method on two devices, compiled once for all tests."""

  name: str
  setup: Setup
  step: Callable  # raises if an output was not averaged over the devices
  args: tuple  # of the step, before training
  state: Any  # after one step
  metrics: dict  # of it, with what `showing` and `sloped` add


def two_devices(digits):
  return data.train_batches(
    digits.train, batch_size=16, seed=0, start_step=0, num_local_devices=2
  )


def showing(method: Method) -> Method:
  """Lets what the outer loss is given leave the step, for all devices.

  As 'images' of the metrics: [2, B, H, W, C], and the adversarial ones.
  """

  def loss(ctx, batch, adv):
    out = method.loss(ctx, batch, adv)
    images = jax.lax.all_gather((batch.image, adv), AXIS)
    return out._replace(metrics={**out.metrics, 'images': images})

  return method._replace(loss=loss)


def sloped(step: Callable) -> Callable:
  """Adds 'teachers' to the metrics: the slopes of the loss by their weights."""

  def stepping(state, teachers, batch):
    def loss(teachers):
      new, metrics = step(state, teachers, batch)
      return metrics['loss'], (new, metrics)

    slopes, (new, metrics) = jax.grad(loss, has_aux=True)(teachers)
    return new, {**metrics, 'teachers': jax.lax.pmean(slopes, AXIS)}

  return stepping


@pytest.fixture(scope='module', params=CASES)
def built(request, digits):
  """A method after the other, each for all tests, as pytest orders them."""
  key, arguments = CASES[request.param]
  method = METHODS[key](**arguments)
  setup = small_step(method, digits)
  recipe = setup.recipe._replace(method=showing(method))
  step = sloped(functools.partial(train_step, recipe))
  step = jax.jit(on_one_device(step))
  start = setup.state.replace(step=jnp.asarray(BEGIN, jnp.int32))
  args = start, setup.teacher_variables, next(two_devices(digits))
  return Built(request.param, setup, step, args, *step(*args))


def changed(before, after):
  """Returns of each leaf whether any of its numbers changed."""
  leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
  return [bool(np.any(np.asarray(a) != np.asarray(b))) for a, b in leaves]


def test_gradients_are_finite_and_reach_all_weights(built):
  _, setup, _, args, state, metrics = built
  finite = jax.tree.map(
    lambda x: bool(np.all(np.isfinite(x))), (state.params, metrics)
  )
  assert all(jax.tree.leaves(finite)), finite
  assert all(changed(args[0].params, state.params))  # student, heads, peer
  assert ('peer' in state.params) == setup.recipe.method.peer
  assert all(changed(args[0].batch_stats, state.batch_stats))
  assert all(changed(args[0].peer_stats, state.peer_stats))
  kept = jax.tree.leaves(state.memory)
  assert not kept or any(changed(args[0].memory, state.memory))
  assert all(np.all(np.isfinite(x)) for x in kept)


def test_no_gradient_reaches_a_teacher(built):
  setup, metrics = built.setup, built.metrics
  assert metrics['teachers'].keys() == set(setup.recipe.method.teachers)
  for slope in jax.tree.leaves(metrics['teachers']):
    np.testing.assert_array_equal(slope, 0)


def test_the_student_looks_into_itself(built):
  metrics = built.metrics
  looks = built.name in ('iad', 'iad II', 'adaiad')
  assert looks == ('trust' in metrics and 'kl_itself' in metrics)
  if looks:
    assert metrics['trust'] < 0.999 and metrics['kl_itself'] > 0


def test_adversarial_images_are_inside(built):
  clean, adv = built.metrics['images']
  for images in jax.tree.leaves(adv):
    for device in range(2):
      for one in np.asarray(images[device]).reshape(-1, *clean[device].shape):
        centre = np.asarray(clean[device], np.float64)
        check_inside(one, centre, 'linf', 0.1)


def on_pmap(name: str):
  """Returns a case of `built`, slow where nothing but averages cross devices.

  The step on one device, of all methods, already fails where one was forgotten.
  """
  key, arguments = CASES[name]
  method = METHODS[key](**arguments)
  others = 'trades', 'rslad', 'igam'  # no teacher, a teacher, heads
  crosses = method.peer or method.init_memory is not no_memory
  crosses |= any(word in source_of(key) for word in ('AXIS', 'gather('))
  quick = crosses or name in others
  return pytest.param(name, marks=() if quick else pytest.mark.slow)


def source_of(method: str) -> str:
  module = inspect.getmodule(METHODS[method])
  assert module is not None
  return inspect.getsource(module)


@pytest.mark.parametrize('built', [*map(on_pmap, CASES)], indirect=True)
def test_one_trace_and_several_devices_equal_one(built, digits):
  _, setup, _, args, expected, expected_metrics = built
  traces = []

  def counting(*args):
    traces.append(1)
    return setup.step(*args)

  step = parallel.pmap_step(counting)
  teacher = parallel.replicate(setup.teacher_variables)
  batches = two_devices(digits)
  state, metrics = step(parallel.replicate(args[0]), teacher, next(batches))
  # BatchNorm is per device in both. Reductions differ by rounding, which
  # sign() may amplify in later steps, but not in the first one's loss.
  np.testing.assert_allclose(
    metrics['loss'], expected_metrics['loss'], rtol=1e-5
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    jax.tree.map(np.asarray, (state.params, state.memory, state.peer_stats)),
    (expected.params, expected.memory, expected.peer_stats),
  )
  for _ in range(2):
    state, _ = step(state, teacher, next(batches))
  assert len(traces) == 1, 'the step was traced again'


def test_loss_falls_on_digits(built):
  step, (start, teachers, batch) = built.step, built.args
  state, losses = start, []
  for _ in range(15):  # the same batch and draws: any method must learn it
    # What it remembers moves the goal, so that is kept as it was.
    state = state.replace(memory=start.memory, step=start.step)
    state, metrics = step(state, teachers, batch)
    losses.append(float(metrics['loss']))
  assert np.mean(losses[-3:]) < losses[0], losses


def test_the_same_step_twice_is_bitwise_the_same(built):
  first = built.state, built.metrics
  again = built.step(*built.args)
  jax.tree.map(np.testing.assert_array_equal, again, first)


def test_resume_is_bitwise(built, tmp_path):
  """Saved after a step and restored, the next step is bitwise the same."""
  step, (start, *rest), state = built.step, built.args, built.state
  folder = checkpoint.open_folder(tmp_path, 'last', 1)
  checkpoint.save(folder, 1, jax.tree.map(np.array, state), {})
  checkpoint.wait(folder)
  found = checkpoint.restore(folder, start)
  folder.close()
  assert found is not None
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(found[0].memory, state.memory)
  same(step(state, *rest), step(found[0], *rest))


def test_memory_of_one_device_alone_is_refused(digits):
  """pmap would silently keep the first device's, and forget the others'."""

  def remembering(join):
    def loss(ctx, batch, adv):
      out = ctx.student(adv)
      memory = {'last': join(batch.image)}
      return LossOutput(jnp.mean(out.logits), out.batch_stats, {}, memory)

    init = lambda *args: {'last': jnp.zeros((16, 8, 8, 1))}  # noqa: E731
    return Method(loss, teachers=(), init_memory=init)

  def memory_after(join):
    setup = small_step(remembering(join), digits)
    batch = next(two_devices(digits))
    step = on_one_device(setup.step)
    return jax.eval_shape(step, setup.state, {}, batch)[0].memory['last']

  assert memory_after(gather).shape == (16, 8, 8, 1)
  with pytest.raises(ValueError):
    memory_after(lambda image: image)


def broken(**changes) -> Method:
  """A method whose loss is changed: {field: (batch, output) -> value}."""
  method = METHODS['rslad']()

  def loss(ctx, batch, adv):
    out = method.loss(ctx, batch, adv)
    return out._replace(**{k: f(batch, out) for k, f in changes.items()})

  return method._replace(loss=loss)


@pytest.mark.slow  # tests/config/test_own.py checks one by default
def test_one_call_checks_a_method():
  check_method(METHODS['rslad']())


def reversed_gradient(batch, out):
  return 2 * jax.lax.stop_gradient(out.loss) - out.loss


BROKEN = {
  'differs between devices': broken(
    memory=lambda batch, _: {'last': batch.image.mean()}
  )._replace(init_memory=lambda *_: {'last': jnp.zeros(())}),
  'a number is not finite': broken(loss=lambda _, out: out.loss + jnp.nan),
  'the loss does not fall': broken(loss=reversed_gradient),
  "no gradient reaches a trained weight: \\['heads'\\]": broken()._replace(
    init_heads=lambda *_: {'unused': jnp.ones(3)}
  ),
}


@pytest.mark.parametrize(
  'sentence',
  [
    pytest.param(sentence, marks=pytest.mark.slow if i else ())
    for i, sentence in enumerate(BROKEN)
  ],
)
def test_one_call_finds_what_is_wrong(sentence):
  with pytest.raises(AssertionError, match=sentence):
    check_method(BROKEN[sentence])
