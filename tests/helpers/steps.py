"""Small networks and training steps for tests: what compiles in a second."""

from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jax_robust_kd import data, models
from jax_robust_kd.attacks import ascent
from jax_robust_kd.core import CLEAN, ROBUST
from jax_robust_kd.models.layers import classify, make_layers
from jax_robust_kd.training import averages
from jax_robust_kd.training.step import Recipe, create_state, train_step


class Setup(NamedTuple):
  """A training step and all it is called with."""

  recipe: Recipe
  step: object  # (state, teacher_variables, batch), unmapped
  state: object
  teacher_variables: object
  batch: dict  # [1, B, ...], as on one device


@cache
def network(seed: int, width: int, num_classes: int = 10, **fields):
  """Returns forward and variables of a small network for digits.

  Drawn once: initialising and asking a network compile for a second each.
  """
  module = models.build(
    'small_resnet', num_classes, dict(depth=8, width=width, **fields)
  )
  image = jnp.zeros((2, 8, 8, 1))
  variables = models.init(module, jax.random.key(seed), image)
  return partial(models.forward, module), variables


class Tiny(nn.Module):
  """A convolution for each usual feature: compiles in half the time."""

  width: int
  num_classes: int = 10
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, train):
    conv, norm, act = make_layers(train, self.dtype, None, 'relu', 'symmetric')
    features = {}
    for i, name in enumerate(['stem', 'stage1', 'stage2', 'stage3']):
      stride = 2 if i > 1 else 1
      x = conv(self.width * stride, stride=stride, name=name)(x)
      features[name] = x = act(norm(name=f'{name}_norm')(x))
    logits, features['pooled'] = classify(x, self.num_classes)
    return logits, features


@cache
def tiny_network(seed: int, width: int, **fields):
  """As `network`, of a Tiny."""
  module = Tiny(width, **fields)
  variables = models.init(module, jax.random.key(seed), jnp.zeros((2, 8, 8, 1)))
  return partial(models.forward, module), variables


@cache
def answer(make, seed: int, width: int):
  """Returns what such a network says of an empty image, as for heads."""
  forward, variables = make(seed, width)
  image = jnp.zeros((2, 8, 8, 1))
  return jax.jit(partial(forward, mode='eval'))(variables, image)


STUDENT, PEER = (0, 4), (3, 4)
TEACHERS = {ROBUST: (1, 6), CLEAN: (5, 6)}


def sharpened(forward, variables):
  """Makes a network as sure of itself as a trained one, which a teacher is."""
  return forward, jax.tree.map(
    lambda x: 10 * x if x.ndim == 2 else x, variables
  )


def small_step(
  method, digits, batch_size: int = 16, make=tiny_network, **changes
) -> Setup:
  """Builds a step of a method on digits, with networks of `make`."""
  student, variables = make(*STUDENT)
  teachers = {
    name: sharpened(*make(*TEACHERS[name])) for name in method.teachers
  }
  peer, peer_variables = make(*PEER) if method.peer else (None, None)
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
      teachers={name: forward for name, (forward, _) in teachers.items()},
      tx=tx,
      attack_mode='eval',
      total_steps=100,
      average=averages.ema(0.9),
      peer=peer,
  )._replace(**changes)  # fmt: skip
  outputs = answer(make, *STUDENT), answer(make, *TEACHERS[ROBUST])
  rows = len(digits.train.label)
  state = create_state(
    seed=0,
    variables=variables,
    tx=tx,
    heads=method.init_heads(jax.random.key(2), *outputs),
    average=recipe.average,
    peer=peer_variables,
    memory=method.init_memory(jax.random.key(4), *outputs, rows),
  )
  batches = data.train_batches(
    digits.train, batch_size=batch_size, seed=0, start_step=0
  )
  return Setup(
    recipe,
    partial(train_step, recipe),
    state,
    {name: weights for name, (_, weights) in teachers.items()},
    next(batches),
  )
