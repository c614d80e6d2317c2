"""Linear probe: a linear classifier trained on frozen features."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_robust_kd import data, losses
from jax_robust_kd.core import Array, PyTree, RunError


class Labelled(NamedTuple):
  """Features of images, and their labels."""

  feature: np.ndarray  # [N, d] float32
  label: np.ndarray  # [N] int32


class Schedule(NamedTuple):
  """How a probe passes over its training features."""

  batch_size: int
  epochs: int
  seed: int = 0  # seed of the order of the images


class LinearProbe(NamedTuple):
  """logits = feature kernel + bias, and how it was chosen."""

  kernel: np.ndarray  # [d, K] float32
  bias: np.ndarray  # [K] float32
  step: int  # optimizer steps
  val_clean: float  # accuracy on the held-out images


def fit(
  train: Labelled,
  val: Labelled,
  num_classes: int,
  tx: optax.GradientTransformation,
  schedule: Schedule,
  log: Callable[[dict], None] = lambda line: None,
) -> LinearProbe:
  """Trains a probe by cross-entropy from 0; held-out images choose the epoch.

  In training each feature has mean 0 and deviation 1 over the training images,
  so that step size and weight decay mean the same for any network. The probe
  that is returned takes the features as they are.

  Args:
    train: features to train on.
    val: features that choose the epoch.
    num_classes: K.
    tx: the optimizer.
    schedule: batches and epochs.
    log: called with 'step', 'epoch', 'loss' and 'val_clean' of every epoch.

  Raises:
    UserError: the batch is larger than the set.
    RunError: the loss is not finite.
  """
  batch_size = schedule.batch_size
  steps = data.num_batches(len(train.label), batch_size)
  center, scale = _statistics(train.feature)
  params = {
    'kernel': jnp.zeros((train.feature.shape[1], num_classes)),
    'bias': jnp.zeros(num_classes),
  }
  sets = [
    jax.device_put(part._replace(feature=(part.feature - center) / scale))
    for part in (train, val)
  ]
  train_epoch = jax.jit(partial(_train_epoch, tx))
  carry, best = (params, tx.init(params)), (-1.0, 0, params)
  for epoch in range(schedule.epochs):
    order = data.epoch_order(schedule.seed, epoch, len(train.label))
    rows = order[: steps * batch_size].reshape(steps, batch_size)
    carry, loss, val_clean = train_epoch(carry, *sets, rows)
    if not np.isfinite(loss):
      raise RunError(
        f'the loss of the linear probe is not finite in epoch {epoch + 1}; '
        'lower optimizer.learning_rate'
      )
    step, accuracy = (epoch + 1) * steps, float(val_clean)
    line = {'step': step, 'epoch': epoch + 1, 'val_clean': accuracy}
    log(line | {'loss': float(loss)})
    if accuracy > best[0]:
      best = accuracy, step, carry[0]
  accuracy, step, params = best
  kernel = np.asarray(params['kernel']) / scale[:, None]
  bias = np.asarray(params['bias']) - center @ kernel
  return LinearProbe(kernel, bias, step, accuracy)


def _statistics(feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and deviation [d] over the images; 1 for a dead feature."""
  scale = feature.std(axis=0)
  # A feature that is constant but for rounding must not be blown up.
  dead = scale <= 1e-6 * np.abs(feature).max(axis=0)
  return feature.mean(axis=0), np.where(dead, np.float32(1), scale)


def _train_epoch(
  tx: optax.GradientTransformation,
  carry: tuple[PyTree, PyTree],
  train: Labelled,
  val: Labelled,
  rows: Array,
) -> tuple[tuple[PyTree, PyTree], Array, Array]:
  """Returns the state, the mean loss and the accuracy on `val`."""

  def step(carry, rows):
    params, opt_state = carry
    batch = jax.tree.map(lambda x: x[rows], train)
    loss, grads = jax.value_and_grad(_loss)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  carry, loss = jax.lax.scan(step, carry, rows)
  predicted = jnp.argmax(_logits(carry[0], val), axis=-1)
  return carry, loss.mean(), (predicted == val.label).mean()


def _logits(params: PyTree, part: Labelled) -> Array:
  return part.feature @ params['kernel'] + params['bias']


def _loss(params: PyTree, batch: Labelled) -> Array:
  logits = _logits(params, batch)
  target = jax.nn.one_hot(batch.label, logits.shape[-1])
  return losses.cross_entropy(logits, target).mean()
