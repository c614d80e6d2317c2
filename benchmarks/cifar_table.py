r"""A table over methods on real CIFAR-10 that two CPU cores can afford.

One teacher, one small student, the same images and epochs for every method;
each run is `jax_robust_kd.main` with overrides, so an interrupted table goes
on where it stopped. Training images: the first NUM_TRAIN of train[:40000],
whose last 1,024 are held out to choose checkpoints; test: train[40000:].

python -m benchmarks.cifar_table --data_dir DIR --workdir runs/table --seeds 0 1
"""

import argparse
import json
from pathlib import Path
import statistics
import subprocess
import sys

# label: config, extra flags
METHODS = {
  'kd': ('kd', []),
  'pgd_at': ('pgd_at', []),
  'trades': ('trades', []),
  'rslad': ('rslad', []),
  'adaad': ('adaad', []),
  'advfunmatch': ('advfunmatch', []),
  'advfunmatch, crop + flip only': (
    'advfunmatch',
    [
      '--config.data.augment.cutout=0',
      '--config.data.augment.cutmix_alpha=0.0',
    ],
  ),
}


def flags(args, epochs: int, seed: int) -> list[str]:
  """Returns what all runs share."""
  return [
    f'--config.seed={seed}',
    f'--config.data.data_dir={args.data_dir}',
    '--config.data.train_split=train[:40000]',
    '--config.data.test_split=train[40000:]',
    f'--config.data.num_train={args.num_train}',
    f'--config.optimizer.epochs={epochs}',
    '--config.optimizer.warmup_epochs=0.5',
    '--config.attack.num_steps=3',
    '--config.attack.step_size=4/255',
    '--config.eval.step_size=2/255',
    '--config.eval.every_epochs=2',
    f'--config.eval.num_examples={args.num_test}',
    "--config.eval.suite=('pgd-20','cw-20')",
    '--config.log_every=50',
  ]


def run(config: str, workdir: Path, extra: list[str]) -> dict:
  """Runs, or goes on with, one entry; returns its results.json."""
  command = [sys.executable, '-m', 'jax_robust_kd.main']
  command += ['--config', config, '--workdir', str(workdir), *extra]
  subprocess.run(command, check=True)
  return json.loads((workdir / 'results.json').read_text())


def spread(values: list[float]) -> str:
  """Formats mean and, from two seeds on, standard deviation."""
  mean = f'{statistics.mean(values):.1f}'
  if len(values) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(values):.1f}'


def show(rows: dict[str, list[dict]]) -> None:
  """Prints the table in Markdown."""
  print('| method | seeds | clean | PGD-20 | CW-20 | worst case |')
  print('|---|---|---|---|---|---|')
  for name, cards in rows.items():
    cells = [
      [c['clean_acc'] for c in cards],
      [c['accuracy']['pgd-20'] for c in cards],
      [c['accuracy']['cw-20'] for c in cards],
      [c['robust_accuracy'] for c in cards],
    ]
    values = ' | '.join(spread(cell) for cell in cells)
    print(f'| {name} | {len(cards)} | {values} |', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--workdir', type=Path, required=True)
  parser.add_argument('--teacher', type=Path, help='workdir of a trained one')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
  parser.add_argument('--num_train', type=int, default=10000)
  parser.add_argument('--num_test', type=int, default=2000)
  parser.add_argument('--epochs', type=int, default=8)
  parser.add_argument('--teacher_epochs', type=int, default=20)
  args = parser.parse_args()
  teacher = args.teacher or args.workdir / 'teacher'
  if not (teacher / 'results.json').exists():
    larger = ['--config.student.width=32']
    more = flags(args, args.teacher_epochs, 0) + larger
    run('benchmarks/small_cifar.py:trades', teacher, more)
  rows = {'teacher': [json.loads((teacher / 'results.json').read_text())]}
  for seed in args.seeds:
    for name, (config, extra) in METHODS.items():
      folder = args.workdir / f'{name.split(",")[0]}{len(extra)}-{seed}'
      more = flags(args, args.epochs, seed) + extra
      if config not in ('pgd_at', 'trades'):
        more += [f'--config.teacher.checkpoint={teacher}']
      card = run(f'benchmarks/small_cifar.py:{config}', folder, more)
      rows.setdefault(name, []).append(card)
    show(rows)


if __name__ == '__main__':
  main()
