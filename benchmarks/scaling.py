"""Training images per second over virtual CPU devices and processes.

python -m benchmarks.scaling

On one machine the devices share its cores: two of them can be at most twice as
fast as one that uses a single core, and no faster than one that uses all. It
shows what mapping a step over devices and processes costs by itself (copies,
the sum of gradients, gloo), not how a pod scales: there each device has its own
processor, and the network between hosts decides.
"""

import argparse
import json
import os
from pathlib import Path
import socket
import subprocess
import sys
import tempfile

ROOT = Path(__file__).parent.parent
SHAPES = ((1, 1), (1, 2), (2, 1))  # processes x devices


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def run_all(argv: list[str], number: int, devices: int) -> None:
  """Runs a command in as many processes, with virtual CPU devices each."""
  command = [sys.executable, '-m', 'jax_robust_kd.main', *argv]
  if number > 1:
    command += [
      '--distributed',
      f'--coordinator=localhost:{free_port()}',
      f'--num_processes={number}',
    ]
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
  }
  processes = [
    subprocess.Popen(
      command + ([f'--process_id={i}'] if number > 1 else []),
      env=environment,
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
    )
    for i in range(number)
  ]
  if any([process.wait() for process in processes]):
    raise SystemExit(f'the run of {number} x {devices} failed')


def speed(shape: tuple[int, int], steps: int, workdir: Path) -> float:
  """Returns images/s of a run, from its second line of speed.jsonl on."""
  argv = [
    f'--config={ROOT}/configs/pgd_at.py:digits', f'--workdir={workdir}',
    '--config.student.width=32', '--config.data.batch_size=128',
    '--config.log_every=5', f'--config.optimizer.epochs={max(1, steps // 7)}',
    '--config.validation.every_epochs=1000', '--config.save.every_steps=100000',
    '--config.eval.num_examples=8', "--config.eval.suite=('fgsm',)",
    '--config.eval.batch_size=8',
  ]  # fmt: skip
  run_all(argv, *shape)
  lines = (workdir / 'speed.jsonl').read_text().splitlines()
  rates = [json.loads(line)['images_per_second'] for line in lines]
  rates = sorted(rates[3:-1])  # the first compiles, the last validates
  return rates[len(rates) // 2]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=70)
  args = parser.parse_args()
  cores = len(os.sched_getaffinity(0))
  print(f'{cores} cores; ResNet-8 of width 32 on digits, PGD-AT, batch 128')
  print('| processes x devices | images/s |')
  print('|---|---|')
  for shape in SHAPES:
    with tempfile.TemporaryDirectory() as folder:
      rate = speed(shape, args.steps, Path(folder) / 'run')
    print(f'| {shape[0]} x {shape[1]} | {rate:.0f} |', flush=True)


if __name__ == '__main__':
  main()
