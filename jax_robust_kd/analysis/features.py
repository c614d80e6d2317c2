"""Features of the networks of finished runs, and another head on them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd import data, networks
from jax_robust_kd.attacks.batching import make_program, make_runner
from jax_robust_kd.core import Array, Forward, PyTree, UserError
from jax_robust_kd.runtime import checkpoint, parallel
from jax_robust_kd.workdir import read_config

_CHUNK = 1024  # images that are in memory as floats at once


def load_any(
  workdir: str, dataset: data.Dataset, which: str
) -> networks.Network:
  """Loads a run's network as `load_network`, whatever its number of classes.

  Raises:
    UserError: as there, or it takes images of other channels, or its best
      checkpoint is asked for where no classifier was trained to choose it.
  """
  untrained = read_config(workdir).method.get('classifier') == 'none'
  if untrained and which == 'best':
    raise UserError(
      f"eval.checkpoint='best', but {workdir} trained no classifier (method."
      "classifier='none'), so that accuracy chose its best checkpoint by "
      'chance; use --config.eval.checkpoint=last'
    )
  network = networks.load_network(workdir, dataset, which, any_classes=True)
  takes = network.variables['params']['stem']['kernel'].shape[2]
  channels = dataset.train.image.shape[-1]
  if takes != channels:
    raise UserError(
      f'the network in {workdir} takes images of {takes} channel(s), data '
      f'set {dataset.name!r} has {channels}; choose another data.name'
    )
  return network


def save_with_head(
  workdir: Path,
  network: networks.Network,
  head: PyTree,
  step: int,
  record: dict,
) -> None:
  """Writes a network with another head as the 'best' checkpoint of a run.

  Args:
    workdir: workdir of the run.
    network: the network, saved with another head.
    head: 'kernel' [d, K] and 'bias' [K], on the pooled features.
    step: optimizer steps of the head.
    record: what `train` stores too, but for the normalization.

  Raises:
    RunError: it cannot be written.
  """
  module: Any = network.module
  state = {
    'params': {'student': {**network.variables['params'], 'head': head}},
    'batch_stats': network.variables['batch_stats'],
    'ema_params': {},
    'ema_stats': {},
    'step': np.asarray(step, np.int32),
  }
  normalization = {'mean': module.mean, 'std': module.std}
  folder = checkpoint.open_folder(workdir, 'best', 1)
  try:
    checkpoint.save(
      folder, step, state, {**record, 'normalization': normalization}
    )
    checkpoint.wait(folder)
  finally:
    folder.close()


def extract(
  network: networks.Network,
  images: Callable[[np.ndarray], np.ndarray],
  count: int,
  batch_size: int,
) -> dict[str, np.ndarray]:
  """Returns every stage's features of images, averaged over their pixels.

  Averaged, a stage has as many features as channels. Flattened it would have
  more than there are images, and any two sets of features would look alike.

  Args:
    network: computes in float32 with running averages.
    images: rows -> [n, H, W, C] float32 in [0, 1].
    count: N, the number of images.
    batch_size: images at once, over all local devices.

  Returns:
    'stem', 'stage1'.. and 'pooled', in this order, [N, channels] float32.
  """
  forward = networks.in_precision(network, 'float32')
  weights = parallel.replicate(network.variables, jax.local_devices())
  apply = Partial(_features_of(forward), weights)
  shape = images(np.arange(1)).shape[1:]
  runner = make_runner(batch_size, count, shape)
  program = make_program('features', partial(_call), runner)
  parts = [
    program(apply, {}, images(np.arange(first, min(first + _CHUNK, count))))
    for first in range(0, count, _CHUNK)
  ]
  return {
    name: np.concatenate([part[name] for part in parts])
    for name in sorted(parts[0], key=depth)
  }


def _features_of(forward: Forward) -> Callable:
  return lambda variables, image: {
    name: _average(x)
    for name, x in forward(variables, image, 'eval').features.items()
  }


def _average(x: Array) -> Array:
  return x.mean(axis=tuple(range(1, x.ndim - 1)))


def _call(shared: tuple, rows: Array) -> PyTree:
  return shared[0](rows)


def depth(name: str) -> tuple:
  """Sorts names of stages from the image to the logits."""
  return name == 'pooled', name != 'stem', name
