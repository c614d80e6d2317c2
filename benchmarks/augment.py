"""Cost of every augmentation alone, beside that of a training step.

python -m benchmarks.augment --step_seconds 19.6
"""

import argparse
import statistics
import time

import jax
import numpy as np

from jax_robust_kd.data import make_augment
from jax_robust_kd.data.preview import rows_for


def seconds(run, rounds: int) -> float:
  """Returns the median time of a call, after one that compiles."""
  times = []
  for i in range(rounds + 1):
    start = time.perf_counter()
    jax.block_until_ready(run(i))
    times.append(time.perf_counter() - start)
  return statistics.median(times[1:])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--side', type=int, default=32, help='pixels')
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument(
    '--step_seconds',
    type=float,
    default=19.6,
    help='of a training step with that batch, by benchmarks.steps; the '
    'default is AdvFunMatch with ResNet-18 on two CPU cores',
  )
  args = parser.parse_args()
  shape = (args.batch, args.side, args.side, 3)
  image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
  index = np.arange(args.batch, dtype=np.int32)
  print('| augmentation | ms per batch | images/s | share of a step |')
  print('|---|---|---|---|')
  for name, options in rows_for(args.side).items():
    augment = jax.jit(make_augment(num_classes=10, **options))
    keys = [jax.random.key(i) for i in range(args.rounds + 1)]
    cost = seconds(
      lambda i: augment(keys[i], index, image, index % 10), args.rounds
    )
    print(
      f'| {name} | {1e3 * cost:.2f} | {args.batch / cost:,.0f} '
      f'| {cost / args.step_seconds:.3%} |',
      flush=True,
    )


if __name__ == '__main__':
  main()
