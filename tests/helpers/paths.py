"""Small networks with features, and the paths of attacks on their images."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np

from helpers.equations import ADV, CLEAN, TARGET, TEACHER, linear
from jax_robust_kd.core import AXIS, Ascent, Batch, Context, Output

# The function shadows its module.
DARWIN = import_module('jax_robust_kd.methods.darwin')
RNG = np.random.default_rng(1)
KEYS = jax.random.split(jax.random.key(5), 6)
# Networks: logits are linear in the pixels; a block's map is pixel * v + u per
# channel. MixACM's head brings stage1's 3 channels to the teacher's 2.
SIZES = {'logits': 12, 'stem': 4, 'stage1': 6, 'head': 6}
WEIGHTS = RNG.normal(size=sum(SIZES.values()))
TEACHER_MAPS = RNG.normal(size=(2, 2, 2))
PATHS = np.clip(CLEAN + RNG.uniform(-0.2, 0.2, (2, 3, *CLEAN.shape)), 0, 1)
MIXED = 0.7 * TARGET + 0.3 * TARGET[[1, 0, 3, 2, 5, 4]]


def cut(weights):
  """Splits the student's weights by name; for NumPy and for JAX."""
  split = np.split if isinstance(weights, np.ndarray) else jnp.split
  edges = np.cumsum(list(SIZES.values()))[:-1]
  return dict(zip(SIZES, split(weights, edges), strict=True))


def maps(weights, image):
  v, u = weights.reshape(2, -1)
  return image * v + u


def context(weights=WEIGHTS, teacher=TEACHER):
  """`batch_stats` lists the images that moved the averages, by their sum."""
  weights = cut(jnp.asarray(weights))

  def student(image, batch_stats=(0.0,) * 9):
    features = {name: maps(weights[name], image) for name in ('stem', 'stage1')}
    seen = jnp.stack([*batch_stats[1:], jnp.sum(image)])
    logits = linear(weights['logits'].reshape(4, 3), image)
    return Output(logits, {**features, 'pooled': logits}, seen)

  def answer(image):
    features = {
      'stem': maps(TEACHER_MAPS[0], image),
      'stage1': maps(TEACHER_MAPS[1], image),
      'pooled': image.reshape(len(image), -1),
    }
    return Output(linear(teacher, image), features, {})

  heads = {'stage1': weights['head'].reshape(3, 2)}
  return Context(student, answer, heads, jnp.zeros(()), rng=KEYS)


def loss_of(method, weights, image, target, adv):
  """Returns LossOutput of batches on devices, [devices, B, ...] each."""

  def loss(image, target, adv):
    ctx = context(weights)._replace(rng=KEYS[: len(target)])
    return method.loss(ctx, Batch(image, target), adv)

  return jax.vmap(loss, axis_name=AXIS)(image, target, adv)


def run(name, method, weights):
  """Returns LossOutput on one device."""
  adv = ADV
  if name == 'darwin':
    adv = {'untargeted': PATHS[0], 'targeted': PATHS[1]}
  target = MIXED if name == 'mixacm' else TARGET
  one = jax.tree.map(lambda x: jnp.asarray(x)[None], (CLEAN, target, adv))
  return jax.tree.map(lambda x: x[0], loss_of(method, weights, *one))


def attacked(method, ctx, batch=None):
  """Returns what `perturb` returns and the losses that it maximized."""
  losses = []

  def maximize(rng, loss_fn, image):
    losses.append(loss_fn)
    np.testing.assert_array_equal(image, jnp.asarray(CLEAN))
    path = jnp.arange(10.0)[:, None, None, None, None] * jnp.ones_like(image)
    return Ascent(path[-1], path)

  batch = batch or Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET))
  keys = jax.random.split(jax.random.key(0), 6)
  return method.perturb(keys, ctx, batch, maximize), losses
