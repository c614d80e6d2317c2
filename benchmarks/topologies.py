"""The same run on several processes and devices: how it ends.

python -m benchmarks.topologies

The first step agrees to rounding (tests/runtime/test_processes.py); later ones
do not, since sign() in the attack turns a last digit into a full step. So final
accuracies are compared with the spread of seeds. Digits, PGD-AT, BatchNorm over
all devices.
"""

import json
from pathlib import Path
import tempfile

from benchmarks.scaling import ROOT, run_all

# Processes, devices of each, seed.
RUNS = ((1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 4, 0), (2, 2, 0), (4, 1, 0))


def run(number: int, devices: int, seed: int, workdir: Path) -> dict:
  """Trains and evaluates; returns results.json and the first loss."""
  argv = [
    f'--config={ROOT}/configs/pgd_at.py:digits', f'--workdir={workdir}',
    f'--config.seed={seed}', '--config.sync_bn=True', '--config.log_every=1',
    '--config.optimizer.epochs=15', "--config.eval.suite=('pgd-20',)",
  ]  # fmt: skip
  run_all(argv, number, devices)
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
