"""Images per second and memory of a set that is streamed from disk.

python -m benchmarks.streaming --name tiny_imagenet --data_dir DATA
python -m benchmarks.streaming --synthetic 2000
"""

import argparse
import multiprocessing
import os
from pathlib import Path
import tempfile
import time

import numpy as np

from jax_robust_kd import data


def write_synthetic(root: Path, count: int) -> None:
  """Writes `count` 224 x 224 JPEGs of 10 classes, of a photo's size on disk."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for place in range(count + 100):
    # Blurred noise compresses about as well as a photo does: 15 to 20 kB.
    small = rng.integers(0, 256, (56, 56, 3), np.uint8)
    image = Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC)
    part = 'train' if place < count else 'test'
    file = root / part / f'c{place % 10}' / f'{place:06d}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=75)


def memory() -> float:
  """Returns MB of this process and its workers; shared pages count once."""
  pids = [os.getpid(), *(c.pid for c in multiprocessing.active_children())]
  total = 0
  for pid in pids:
    for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
      if line.startswith('Pss:'):
        total += int(line.split()[1])
  return total / 1e3


def measure(train: data.Split, batch: int, epochs: int) -> tuple[float, list]:
  """Returns images/s after the first epoch, and MB at the end of each."""
  steps = data.num_batches(len(train.label), batch)
  batches = data.train_batches(train, batch_size=batch, seed=0, start_step=0)
  used, started = [], 0.0
  for step, _ in zip(range(1, epochs * steps + 1), batches, strict=False):
    if step % steps == 0:
      used.append(memory())
    if step == steps:
      started = time.monotonic()
  seconds = time.monotonic() - started
  batches.close()  # type: ignore[attr-defined]
  return (epochs - 1) * steps * batch / seconds, used


def run(name: str, given: argparse.Namespace) -> None:
  """Prints a line of a table for each number of workers."""
  print('| workers | images/s | MB after each epoch |\n|---|---|---|')
  for workers in given.workers:
    reading = data.Reading(memory_gb=0.0, workers=workers)
    dataset = data.load(name, given.data_dir, val_size=100, reading=reading)
    speed, used = measure(dataset.train, given.batch, given.epochs)
    shown = ', '.join(f'{mb:.0f}' for mb in used)
    print(f'| {workers} | {speed:.0f} | {shown} |', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--name', help='as config.data.name')
  parser.add_argument('--data_dir', default='')
  parser.add_argument('--synthetic', type=int, help='JPEGs to make instead')
  parser.add_argument('--workers', type=int, nargs='+', default=(0, 1, 2, 4))
  parser.add_argument('--batch', type=int, default=128)
  parser.add_argument('--epochs', type=int, default=3)
  given = parser.parse_args()
  print(f'{os.cpu_count()} cores, batches of {given.batch}')
  if given.name:
    run(given.name, given)
  if given.synthetic:
    with tempfile.TemporaryDirectory() as root:
      write_synthetic(Path(root), given.synthetic)
      run(root, given)


if __name__ == '__main__':
  main()
