"""AutoAttack in bfloat16, decided in float32: robust accuracy and seconds.

python -m benchmarks.autoattack_precision NETWORK.npz --epsilon 0.1 --count 200

What `eval.attack_precision` does: the attacks see the network in that
precision, and its flags come from float32 at the highest matmul precision.
"""

import argparse
from functools import partial
from pathlib import Path
import time

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from benchmarks.autoattack_networks import Network, load
from jax_robust_kd.attacks import Budget, batching, engine
from jax_robust_kd.attacks.packing import Victim
from jax_robust_kd.attacks.suites import plan


def _logits(apply, dtype, weights, image):
  """Logits, float32, of a network whose weights and images are of `dtype`."""
  weights = jax.tree.map(lambda x: jnp.asarray(x, dtype), weights)
  logits = apply(weights, image.astype(dtype))
  return logits.astype(jnp.float32)


def attack(network: Network, dtype, epsilon: float) -> tuple[int, list[float]]:
  """Returns the robust images, and the seconds of a first and second call."""
  weights = network.apply.args[0]
  attacked = Partial(partial(_logits, network.apply.func, dtype), weights)
  seconds, robust = [], 0
  for _ in range(2):
    begin = time.perf_counter()
    found = engine.run_jobs(
      plan(('autoattack',), Budget('linf', epsilon, epsilon / 4)),
      Victim(attacked, network.apply),
      engine.Images(lambda index: network.image[index], network.label),
      seed=0,
      runner=batching.make_runner(100, 100, (8, 8, 1)),
    )
    robust = int(found.correct['robust'].sum())
    seconds.append(time.perf_counter() - begin)
  return robust, seconds


def main() -> None:
  """Prints a row for each precision."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('network', type=Path)
  parser.add_argument('--epsilon', type=float, required=True)
  parser.add_argument('--count', type=int, default=200)
  args = parser.parse_args()
  apply, image, label = load(args.network)
  network = Network(apply, image[: args.count], label[: args.count])
  print('| attacked in | robust | s, first | warm |\n|---|---|---|---|')
  for dtype in (jnp.float32, jnp.bfloat16):
    robust, (first, warm) = attack(network, dtype, args.epsilon)
    name = jnp.dtype(dtype).name
    print(f'| {name} | {robust} | {first:.1f} | {warm:.1f} |', flush=True)


if __name__ == '__main__':
  main()
