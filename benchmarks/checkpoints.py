"""What a checkpoint costs: bytes, seconds that a step waits, seconds to read.

python -m benchmarks.checkpoints
"""

from pathlib import Path
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_robust_kd import models
from jax_robust_kd.runtime import checkpoint, parallel
from jax_robust_kd.training.step import create_state

NETWORKS = {
  'resnet18': {},
  'wide_resnet': {'depth': 34, 'width': 10},
}
REPEATS = 3


def measure(name: str, fields: dict, folder: Path) -> list[float]:
  """Returns parameters, MB, and seconds: blocked, until whole, to restore."""
  module = models.build(name, 10, fields)
  image = jnp.zeros((1, 32, 32, 3))
  variables = models.init(module, jax.random.key(0), image)
  tx = optax.sgd(0.1, 0.9)
  state = create_state(seed=0, variables=variables, tx=tx)
  # Zeros, as before the first step, would be packed to nothing.
  rng = np.random.default_rng(0)
  moving = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype) if x.ndim else x,
    state.opt_state,
  )
  on_devices = parallel.replicate(state.replace(opt_state=moving))
  manager = checkpoint.open_folder(folder, 'last', 1)
  blocked, whole, restored = [], [], []
  for step in range(1, REPEATS + 1):
    begin = time.perf_counter()
    host = jax.tree.map(np.copy, parallel.to_host(on_devices))
    checkpoint.save(manager, step, host, {})
    blocked.append(time.perf_counter() - begin)
    checkpoint.wait(manager)
    whole.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    checkpoint.restore(manager, host)
    restored.append(time.perf_counter() - begin)
  manager.close()
  size = sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())
  count = models.num_params(variables['params'])
  seconds = [sorted(s)[REPEATS // 2] for s in (blocked, whole, restored)]
  return [count / 1e6, size / 1e6, *seconds]


def main() -> None:
  print(
    '| network | parameters (M) | on disk (MB) | step waits (s) | whole after '
    '(s) | restored and verified in (s) |'
  )
  print('|---|---|---|---|---|---|')
  for name, fields in NETWORKS.items():
    with tempfile.TemporaryDirectory() as folder:
      count, size, *seconds = measure(name, fields, Path(folder))
    cells = ' | '.join(f'{s:.2f}' for s in seconds)
    print(f'| {name} | {count:.1f} | {size:.0f} | {cells} |', flush=True)


if __name__ == '__main__':
  main()
