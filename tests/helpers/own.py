"""A method, a model, an attack and a data set that a user may write."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jax_robust_kd import attacks, data, losses
from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.methods.inner_problems import cross_entropy_label


def method(weight: float = 1.0) -> Method:
  def loss(ctx, batch, adv):
    out = ctx.student(adv)
    value = weight * losses.cross_entropy(out.logits, batch.target).mean()
    return LossOutput(value, out.batch_stats, {})

  return Method(loss, cross_entropy_label, teachers=())


def weighted(weight: float = 2.0) -> Method:
  return method(weight)


def no_method(weight: float = 1.0) -> int:
  return int(weight)


class Model(nn.Module):
  num_classes: int
  dtype: Any = jnp.float32
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  width: int = 4

  @nn.compact
  def __call__(self, image, train):
    x = nn.Conv(self.width, (3, 3), (2, 2), dtype=self.dtype)(image)
    x = nn.relu(x).mean(axis=(1, 2)).astype(jnp.float32)
    return nn.Dense(self.num_classes)(x), {'pooled': x}


def no_model(num_classes, dtype, mean, std):
  return num_classes


def attack():
  return attacks.pgd


def images() -> dict:
  split = data.load('digits').train
  few = split.label < 3
  image, label = np.asarray(split.image)[few], split.label[few]
  return {
    'train_image': image[:200],
    'train_label': label[:200],
    'test_image': image[200:],
    'test_label': label[200:],
    'class_names': ['a', 'b', 'c'],
  }
