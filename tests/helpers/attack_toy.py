"""A small network of two layers, on which the reference programs were run."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.attacks.gradient import Budget
from jax_robust_kd.attacks.stepwise import Problem
from jax_robust_kd.core import image_keys


def toy(norm: str, epsilon: float, **fields) -> Problem:
  """Six images with three channels, not square, and four classes."""
  numbers = np.random.RandomState(7)
  first = numbers.normal(size=(3 * 13 * 15, 16)).reshape(3, 13, 15, 16)
  second = numbers.normal(size=(16, 4)).astype(np.float32)
  image = numbers.uniform(size=(6, 3, 13, 15)).transpose(0, 2, 3, 1)
  first = first.transpose(1, 2, 0, 3).reshape(-1, 16).astype(np.float32)

  def logits_fn(x):
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ first / 8) @ second

  image = jnp.asarray(image, jnp.float32)
  return Problem(
    image_keys(jax.random.key(0), jnp.arange(6)),
    logits_fn,
    image,
    jnp.argmax(logits_fn(image), axis=1).astype(jnp.int32),
    Budget(norm, epsilon, 0.0, **{'num_steps': 20, **fields}),
    jnp.int32(0),
  )


def rows_of(problem: Problem, rows: np.ndarray) -> Problem:
  """The same problem for some of its images."""
  rng, image, label = (
    leaf[rows] for leaf in (problem.rng, problem.image, problem.label)
  )
  return problem._replace(rng=rng, image=image, label=label)


def two_classes():
  """A linear network; returns it, its images, labels and weight [5, 5, 1]."""
  weight = np.random.default_rng(0).normal(size=(5, 5, 1)).astype(np.float32)

  def logits_fn(x):
    score = jnp.sum((x - 0.5) * weight, axis=(1, 2, 3)) - 0.1
    return jnp.stack([score, -score], axis=1)

  return logits_fn, jnp.full((3, 5, 5, 1), 0.5), jnp.ones(3, jnp.int32), weight


def lengths(delta, norm: str) -> np.ndarray:
  """Norm of each row in float64."""
  delta = np.asarray(delta, np.float64)
  order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
  return np.linalg.norm(delta.reshape(len(delta), -1), order, axis=1)
