"""One process of a small step, for tests/runtime/test_processes.py.

argv: coordinator, number of processes, this process, folder, sync or own.
Writes what came out to folder/<process>.npz.
"""

from functools import partial
from pathlib import Path
import sys

import jax
import numpy as np
import optax

from helpers.steps import network, small_step
from jax_robust_kd import data
from jax_robust_kd.attacks import ascent
from jax_robust_kd.core import AXIS, image_keys
from jax_robust_kd.methods import METHODS
from jax_robust_kd.runtime import parallel, processes


def views(setup, batch) -> tuple[np.ndarray, np.ndarray]:
  """Returns each image after augmentation, and the start of its attack."""
  start = partial(
      ascent, norm='linf', epsilon=0.1, step_size=0.0, num_steps=1,
      init='uniform',
  )  # fmt: skip

  def both(key, part):
    view = setup.recipe.augment(
      key, part['index'], part['image'], part['label']
    )
    rng = image_keys(jax.random.key(1), part['index'])
    return view.image, start(rng, lambda x: x.sum((1, 2, 3)), view.image).adv

  mapped = parallel.pmap_rows(lambda shared, part: both(shared['key'], part))
  found = mapped({'key': jax.random.key(0)}, batch)
  return tuple(np.concatenate(np.asarray(x)) for x in found)


def main(coordinator, number, process, folder, bn):
  number, process = int(number), int(process)
  if number > 1:
    processes.join(processes.Start(coordinator, number, process, 60))
  digits = data.load('digits')
  student, variables = network(
    0, 4, bn_axis_name=AXIS if bn == 'sync' else None
  )
  setup = small_step(
      METHODS['trades'](), digits, make=network, student=student,
      tx=optax.sgd(1.0),
      augment=data.make_augment(
          num_classes=10, crop_pad=1, flip=True, cutout=2, mixup_alpha=0.0,
          cutmix_alpha=0.0,
      ),
  )  # fmt: skip
  batches = data.train_batches(
    digits.train, batch_size=16, seed=0, start_step=3, **parallel.place()
  )
  batch = next(parallel.prefetch(batches))
  image, start = views(setup, batch)
  step = parallel.pmap_step(setup.step)
  state, metrics = step(parallel.replicate(setup.state), {}, batch)
  # With a learning rate of 1 the first update is the gradient itself.
  grads = jax.tree.map(
    lambda a, b: a - b,
    parallel.to_host(setup.state.params['student']),
    parallel.to_host(state.params['student']),
  )
  named, _ = jax.tree_util.tree_flatten_with_path(grads)
  np.savez(
    Path(folder) / f'{process}.npz',
    index=np.concatenate(np.asarray(batch['index'])),
    image=image,
    start=start,
    loss=np.asarray(metrics['loss']),
    **{f'grad{jax.tree_util.keystr(path)}': x for path, x in named},
  )
  del variables


if __name__ == '__main__':
  main(*sys.argv[1:])
