"""The same run on several processes and devices: how it ends.

python -m benchmarks.topologies

The first step agrees to rounding (tests/test_processes.py); later ones do not,
since sign() in the attack turns a last digit into a full step. So final
accuracies are compared with the spread of seeds. Digits, PGD-AT, BatchNorm over
all devices.
"""

import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile

from benchmarks.scaling import ROOT, free_port

# Processes, devices of each, seed.
RUNS = ((1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 4, 0), (2, 2, 0), (4, 1, 0))


def run(number: int, devices: int, seed: int, workdir: Path) -> dict:
  """Trains and evaluates; returns results.json and the first loss."""
  argv = [
    sys.executable, '-m', 'jax_robust_kd.main',
    f'--config={ROOT}/configs/pgd_at.py:digits', f'--workdir={workdir}',
    f'--config.seed={seed}', '--config.sync_bn=True', '--config.log_every=1',
    '--config.optimizer.epochs=15', "--config.eval.suite=('pgd-20',)",
  ]  # fmt: skip
  if number > 1:
    argv += [
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
      argv + ([f'--process_id={i}'] if number > 1 else []),
      env=environment,
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
    )
    for i in range(number)
  ]
  if any([process.wait() for process in processes]):
    raise SystemExit(f'the run of {number} x {devices} failed')
  first = (workdir / 'metrics.jsonl').read_text().splitlines()[0]
  card = json.loads((workdir / 'results.json').read_text())
  return {'first': json.loads(first)['loss'], **card}


def main() -> None:
  print('| processes x devices | seed | first loss | clean | PGD-20 |')
  print('|---|---|---|---|---|')
  for number, devices, seed in RUNS:
    with tempfile.TemporaryDirectory() as folder:
      found = run(number, devices, seed, Path(folder) / 'run')
    robust = found['accuracy']['pgd-20']
    print(
      f'| {number} x {devices} | {seed} | {found["first"]:.7f} | '
      f'{found["clean_acc"]:.1f} | {robust:.1f} |',
      flush=True,
    )


if __name__ == '__main__':
  main()
