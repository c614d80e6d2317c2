"""Networks for digits: two honest ones, and five broken defences.

A broken defence makes attacks fail without making the network robust. All take
their weights and a few numbers as arguments of one function, so that what is
compiled for one serves the others.
"""

from functools import partial
import itertools
from typing import NamedTuple

import jax
from jax.experimental import io_callback
import jax.numpy as jnp
from jax.tree_util import Partial
import numpy as np
import optax

from jax_robust_kd.attacks.ascent import ascent
from jax_robust_kd.core import image_keys
from jax_robust_kd.losses import cross_entropy

EPSILON = 0.1
HIDDEN = 128
_TRAIN_STEPS = 600
_BATCH = 128


class Net(NamedTuple):
  """Linear, BatchNorm, ReLU, linear; the averages are of all training images.

  BatchNorm has no scale or shift of its own: the second layer has them.
  """

  first: jax.Array  # [64, HIDDEN]
  second: jax.Array  # [HIDDEN, 10]
  bias: jax.Array  # [10]
  mean: jax.Array  # [HIDDEN]
  variance: jax.Array  # [HIDDEN]


class Defence(NamedTuple):
  """What is done to a network; the defaults do nothing."""

  factor: float = 1.0  # of the logits
  levels: float = 0.0  # of the input, unless 0
  softmax: bool = False
  batch_statistics: bool = False


HONEST = Defence()
BROKEN = {
  'logits x1000': Defence(factor=1000.0),
  'quantised': Defence(levels=8.0),
  'softmax': Defence(softmax=True),
  'batchnorm in train mode': Defence(batch_statistics=True),
}


def _hidden(net, image):
  return (image.reshape(len(image), -1) - 0.3) / 0.4 @ net.first


def defended(net: Net, defence: Defence, image: jax.Array) -> jax.Array:
  """Returns the outputs [B, 10] of a network with a defence."""
  levels = jnp.maximum(defence.levels, 2.0) - 1
  quantised = jnp.round(image * levels) / levels
  x = _hidden(net, jnp.where(defence.levels > 0, quantised, image))
  own = defence.batch_statistics
  mean = jnp.where(own, jnp.mean(x, axis=0), net.mean)
  variance = jnp.where(own, jnp.var(x, axis=0), net.variance)
  x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-5))
  logits = (x @ net.second + net.bias) * defence.factor
  return jnp.where(defence.softmax, jax.nn.softmax(logits), logits)


def apply(net: Net, defence: Defence = HONEST) -> Partial:
  """Returns image -> outputs."""
  return Partial(defended, net, defence)


def noisy(net: Net) -> Partial:
  """Returns image -> logits with new input noise in each call, sd 0.05."""
  calls = itertools.count()

  def draw(shape):
    noise = np.random.default_rng(next(calls)).normal(0, 0.05, shape)
    return noise.astype(np.float32)

  def call(net, image):
    like = jax.ShapeDtypeStruct(image.shape, jnp.float32)
    noise = io_callback(partial(draw, image.shape), like)
    return defended(net, HONEST, image + noise)

  return Partial(call, net)


def train(split, epsilon: float, seed: int = 0) -> Net:
  """Trains a network with PGD-5 of radius `epsilon`, or without for 0."""
  image = jnp.asarray(split.image / np.float32(255))
  target = jax.nn.one_hot(split.label, 10)
  keys = jax.random.split(jax.random.key(seed), 2)
  net = Net(
    jax.random.normal(keys[0], (image[0].size, HIDDEN)) / 8,
    jax.random.normal(keys[1], (HIDDEN, 10)) / 16,
    *(jnp.zeros(n) for n in (10, HIDDEN, HIDDEN)),
  )
  tx = optax.adam(optax.cosine_decay_schedule(5e-3, _TRAIN_STEPS))

  def step(state, number):
    net, opt_state = state
    key = jax.random.fold_in(jax.random.key(seed), number)
    rows = jax.random.randint(key, (_BATCH,), 0, len(image))

    def loss(net, x):
      logits = defended(net, Defence(batch_statistics=True), x)
      return cross_entropy(logits, target[rows])

    adv = image[rows]
    if epsilon:
      adv = ascent(
        image_keys(key, jnp.arange(_BATCH)), partial(loss, net), adv,
        norm='linf', epsilon=epsilon, step_size=epsilon / 2, num_steps=5,
        init='uniform',
      ).adv  # fmt: skip
    grad = jax.grad(lambda net: jnp.mean(loss(net, adv)))(net)
    updates, opt_state = tx.update(grad, opt_state)
    return (optax.apply_updates(net, updates), opt_state), None

  @jax.jit
  def fit(net):
    steps = jnp.arange(_TRAIN_STEPS)
    (net, _), _ = jax.lax.scan(step, (net, tx.init(net)), steps)
    x = _hidden(net, image)
    return net._replace(mean=jnp.mean(x, axis=0), variance=jnp.var(x, axis=0))

  return fit(net)
