"""A batch in parts, one after the other, is the same step in less memory."""

from functools import partial

from flax import linen as nn
from helpers.steps import small_step
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_robust_kd import models
from jax_robust_kd.core import AXIS
from jax_robust_kd.methods import METHODS
from jax_robust_kd.training.step import create_state, train_step


class Plain(nn.Module):
  """One hidden layer, no BatchNorm."""

  @nn.compact
  def __call__(self, image, train):
    del train
    x = nn.relu(nn.Dense(16)(image.reshape(len(image), -1)))
    return nn.Dense(10)(x), {'pooled': x}


def plain_step(name, digits):
  module, tx = Plain(), optax.sgd(1.0)
  variables = module.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), False)
  setup = small_step(
    METHODS[name](),
    digits,
    student=partial(models.forward, module),
    tx=tx,
    average=None,
  )
  variables = {**variables, 'batch_stats': {}}
  return setup._replace(state=create_state(seed=0, variables=variables, tx=tx))


def on_one_device(step):
  return jax.jit(
    jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name=AXIS)
  )


def step_of(setup, accumulate):
  recipe = setup.recipe._replace(accumulate=accumulate)
  step = on_one_device(partial(train_step, recipe))
  return step(setup.state, setup.teacher_variables, setup.batch)


@pytest.mark.parametrize('name', ['trades', 'rslad', 'kd'])
def test_parts_equal_the_whole_without_batchnorm(name, digits):
  """Each part is attacked by itself, with the same noise for each image."""
  setup = plain_step(name, digits)
  whole, metrics = step_of(setup, 1)
  parts, found = step_of(setup, 4)
  for key, value in metrics.items():
    np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), whole.params, setup.state.params
  )
  assert max(jax.tree.leaves(moved)) > 1e-3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    whole.params,
    parts.params,
  )


def test_batchnorm_sees_a_part_at_a_time(digits):
  """As it must: so the running averages move once for each part."""
  setup = small_step(METHODS['natural'](), digits)
  whole, parts = (step_of(setup, n)[0].batch_stats for n in (1, 4))
  mean = [jax.tree.leaves(stats)[0] for stats in (whole, parts)]
  # Four moves of 1 - 0.9 each go further than one.
  assert np.linalg.norm(mean[1]) > 2 * np.linalg.norm(mean[0])


def test_parts_need_less_memory(digits):
  setup = small_step(METHODS['pgd_at'](), digits, batch_size=64)
  used = []
  for accumulate in (1, 8):
    recipe = setup.recipe._replace(accumulate=accumulate)
    step = on_one_device(partial(train_step, recipe))
    compiled = step.lower(setup.state, {}, setup.batch).compile()
    used.append(compiled.memory_analysis().temp_size_in_bytes)
  assert used[1] < used[0] / 2, used
