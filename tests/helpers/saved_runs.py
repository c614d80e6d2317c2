"""Runs with random weights, as training leaves them."""

import jax
import numpy as np

from jax_robust_kd import job
from jax_robust_kd.config import load_config
from jax_robust_kd.networks import describe_data
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.training import build
from jax_robust_kd.workdir import claim_workdir


def save_run(workdir, dataset, seed=0, **changes):
  """Writes config and 'best' checkpoint of a network drawn from a seed.

  Args:
    workdir: of the run.
    dataset: on which it was "trained".
    seed: of the weights.
    changes: dotted keys of the config with underscores for dots, such as
      student=dict(...) or teacher_checkpoint='...'.

  Returns:
    The network.
  """
  c = job.copy(load_config('configs/pgd_at.py:digits'))
  c.seed, c.data.name = seed, dataset.name
  for key, value in changes.items():
    group, _, name = key.partition('_')
    if name:
      c[group][name] = value
    else:
      c[group] = value
  workdir.mkdir(parents=True, exist_ok=True)
  claim_workdir(workdir, c)
  network = build.init_network(c, dataset)
  state = {
    'params': {'student': network.variables['params']},
    'batch_stats': network.variables['batch_stats'],
    'ema_params': {},
    'ema_stats': {},
    'step': np.asarray(7, np.int32),
  }
  record = {
    **describe_data(dataset),
    'chosen_by': 'nothing',
  }
  folder = checkpoint.open_folder(workdir, 'best', 1)
  checkpoint.save(folder, 7, jax.tree.map(np.asarray, state), record)
  checkpoint.wait(folder)
  folder.close()
  return network
