"""Speed of the training step and of its parts, beside the same in PyTorch.

python -m benchmarks.steps --torch .venv-torch/bin/python --json speed.json
"""

import argparse
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import subprocess
import sys

from benchmarks import tables
from benchmarks.worker import ROOT, compare, cores

MODELS = ('resnet18', 'mobilenet_v2')
METHODS = {
  'kd': {'alpha': 0.9, 'temperature': 4.0},
  'pgd_at': {},
  'trades': {'beta': 6.0},
  'rslad': {'alpha': 5 / 6},
  'adaad': {'alpha': 1.0},
  'advfunmatch': {'inner': 'kl_to_teacher_adv', 'clean_weight': 0.0},
}
# name, kind, channels in and out, side of the image, side of the kernel, stride
LAYERS = (
  ('3x3, 64 at 32x32', 'conv', 64, 64, 32, 3, 1),
  ('3x3, 128 at 16x16', 'conv', 128, 128, 16, 3, 1),
  ('3x3, 256 at 8x8', 'conv', 256, 256, 8, 3, 1),
  ('3x3, 512 at 4x4', 'conv', 512, 512, 4, 3, 1),
  ('3x3 stride 2, 64 to 128 at 32x32', 'conv', 64, 128, 32, 3, 2),
  ('1x1, 24 to 144 at 32x32', 'conv', 24, 144, 32, 1, 1),
  ('depthwise 3x3, 144 at 32x32', 'depthwise', 144, 144, 32, 3, 1),
  ('depthwise 3x3 stride 2, 144 at 32x32', 'depthwise', 144, 144, 32, 3, 2),
  ('BatchNorm (batch), 64 at 32x32', 'norm', 64, 64, 32, 1, 1),
)
_MATMUL = 2048
_MICRO_BATCHES = 3


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--models', nargs='+', default=MODELS, choices=MODELS)
  parser.add_argument('--methods', nargs='+', default=METHODS, choices=METHODS)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--attack_steps', type=int, default=10)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--torch', default='', help='a Python with PyTorch')
  parser.add_argument('--json', type=Path, help='write all numbers here')
  parser.add_argument(
    '--tables', nargs='+', default=tables.NAMES, choices=tables.NAMES
  )
  parser.add_argument(
    '--quick', action='store_true', help='batch 16, one round'
  )
  args = parser.parse_args()
  if args.quick:
    args.batch, args.repeats = 16, 1
  return args


def entries(args: argparse.Namespace) -> list[dict]:
  """Returns the specs of all entries, table by table."""
  common = {'batch': args.batch, 'attack_steps': args.attack_steps}
  networks = [{**common, 'model': model} for model in args.models]
  steps = [
    {**network, 'kind': 'step', 'method': {'name': name, **METHODS[name]}}
    for network in networks
    for name in args.methods
  ]
  loops = {'kind': 'loops', 'micro_batches': _MICRO_BATCHES}
  layers = {'kind': 'layers', 'layers': LAYERS, 'matmul': _MATMUL}
  found = {
    'steps': steps,
    'loops': [{**network, **loops} for network in networks],
    'networks': [{**network, 'kind': 'networks'} for network in networks],
    'layers': [{**common, **layers}],
  }
  return [spec for table in args.tables for spec in found[table]]


def environment() -> dict:
  """What a number needs beside it to mean anything."""
  return {
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in ('jax', 'jaxlib', 'flax')},
    'cores': cores(),
    'processor': _processor(),
    'commit': _git('rev-parse', '--short', 'HEAD') or 'unknown',
    'modified': bool(_git('status', '--porcelain', '-uno')),
    'load': os.getloadavg()[0],
  }


def _processor() -> str:
  path = Path('/proc/cpuinfo')
  lines = path.read_text().splitlines() if path.exists() else []
  names = [x.partition(':')[2].strip() for x in lines if 'model name' in x]
  return names[0] if names else platform.processor()


def _git(*command: str) -> str:
  done = subprocess.run(
    ['git', *command], cwd=ROOT, capture_output=True, text=True
  )
  return done.stdout.strip()


def _torch_version(python: str) -> str:
  if not python:
    return 'none: its columns stay empty, name a Python with --torch'
  code = 'import torch; print(torch.__version__)'
  done = subprocess.run([python, '-c', code], capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f'--torch {python}: that Python cannot import torch')
  return done.stdout.strip()


def _warn_if_busy(when: str, allowed: float) -> None:
  load = os.getloadavg()[0]
  if load > allowed:
    print(
      f'WARNING: the load average is {load:.1f} {when}: something else is '
      'running. Do not quote these numbers; PyTorch suffers more than ours '
      'from sharing cores, so the ratios flatter us.\n'
    )


def main() -> None:
  args = parse()
  facts = {**environment(), 'torch': _torch_version(args.torch)}
  print(tables.header(facts), flush=True)
  _warn_if_busy('before the start', allowed=0.5)
  ours = {'ours': (sys.executable, 'benchmarks.jax_side')}
  twin = {'torch': (args.torch, 'benchmarks.torch_twin')} if args.torch else {}
  results, kind = [], ''
  for spec in entries(args):
    if spec['kind'] != kind:
      kind = spec['kind']
      print(tables.title(spec), flush=True)
    sides = ours if kind == 'loops' else {**ours, **twin}
    try:
      results.append((spec, compare(sides, spec, args.repeats)))
    except RuntimeError as error:
      print(f'| {spec.get("model", "all")} | failed: {error} |', flush=True)
      continue
    for row in tables.rows(*results[-1]):
      print(row, flush=True)
    if args.json:
      args.json.write_text(
        json.dumps({'facts': facts, 'results': results}, indent=1)
      )
  print(tables.bounds(results))
  _warn_if_busy('at the end', allowed=cores() + 1)


if __name__ == '__main__':
  main()
