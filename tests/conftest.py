"""Shared by all tests: two virtual CPU devices, small networks and data."""

import os

# Before JAX starts: the tests run on two devices and nothing but the CPU.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_NUM_CPU_DEVICES', '2')
# Compiling is most of the time here: 9.8 s of CPU against 2.9 s for one step.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_robust_kd import averages, data, models
from jax_robust_kd.attacks import ascent
from jax_robust_kd.train_step import Recipe, create_state, train_step


@pytest.fixture(scope='session')
def digits():
  """The embedded digits."""
  return data.load('digits')


class Setup(NamedTuple):
  """A training step and all it is called with."""

  recipe: Recipe
  step: object  # (state, teacher_variables, batch), unmapped
  state: object
  teacher_variables: object
  batch: dict  # [1, B, ...], as on one device


def network(seed: int, width: int, num_classes: int = 10, **fields):
  """Returns forward and variables of a small network for digits."""
  module = models.build(
    'small_resnet', num_classes, dict(depth=8, width=width, **fields)
  )
  image = jnp.zeros((2, 8, 8, 1))
  variables = models.init(module, jax.random.key(seed), image)
  return partial(models.forward, module), variables


def small_step(method, digits, batch_size: int = 16, **changes) -> Setup:
  """Builds a step of a method on digits, with small networks."""
  student, variables = network(0, 4)
  teacher, teacher_variables = network(1, 6)
  peer, peer_variables = network(3, 4)
  tx = optax.sgd(0.05, 0.9)
  recipe = Recipe(
      method=method,
      maximize=partial(
          ascent, norm='linf', epsilon=0.1, step_size=0.05, num_steps=2,
          init='uniform',
      ),
      augment=data.make_augment(
          num_classes=10, crop_pad=1, flip=False, cutout=0, mixup_alpha=0.0,
          cutmix_alpha=0.0,
      ),
      student=student,
      teachers=dict.fromkeys(method.teachers, teacher),
      tx=tx,
      attack_mode='eval',
      total_steps=100,
      average=averages.ema(0.9),
      peer=peer if method.peer else None,
  )._replace(**changes)  # fmt: skip
  image = digits.train.image[:2] / np.float32(255)
  outputs = (
    jax.jit(partial(student, mode='eval'))(variables, image),
    jax.jit(partial(teacher, mode='eval'))(teacher_variables, image),
  )
  rows = len(digits.train.label)
  state = create_state(
    seed=0,
    variables=variables,
    tx=tx,
    heads=method.init_heads(jax.random.key(2), *outputs),
    average=recipe.average,
    peer=peer_variables if method.peer else None,
    memory=method.init_memory(jax.random.key(4), *outputs, rows),
  )
  batches = data.train_batches(
    digits.train, batch_size=batch_size, seed=0, start_step=0
  )
  return Setup(
    recipe,
    partial(train_step, recipe),
    state,
    dict.fromkeys(method.teachers, teacher_variables),
    next(batches),
  )
