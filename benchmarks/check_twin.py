"""Shows that the PyTorch twin does the same work: same loss, same gradient.

The first step of every entry with the twin's weights on both sides, without
augmentation and without noise. The attack starts from images moved by a fixed
pattern, since the gradient of TRADES vanishes at the image itself and its sign
there would be rounding. What is left are the signs of gradients near zero,
which move the loss by up to half a percent.

python -m benchmarks.check_twin --torch .venv-torch/bin/python
"""

import argparse
import os
import sys
import tempfile

from benchmarks import worker
from benchmarks.steps import METHODS, MODELS

_TOLERANCE = 1e-2  # relative


def first_step(python: str, module: str, spec: dict) -> tuple[list, int]:
  """Returns loss and gradient norm of the first step, and the weights' count"""
  process = worker.start(python, module, spec)
  try:
    facts = worker.answer(process)
  finally:
    worker.stop(process)
  return facts['first'], facts['num_params']


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--torch', required=True, help='a Python with PyTorch')
  parser.add_argument('--models', nargs='+', default=list(MODELS))
  parser.add_argument('--methods', nargs='+', default=list(METHODS))
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--attack_steps', type=int, default=3)
  args = parser.parse_args()
  worst = 0.0
  print('| student | method | loss | twin | gradient norm | twin |')
  print('|---|---|---|---|---|---|')
  for model in args.models:
    for name in args.methods:
      with tempfile.TemporaryDirectory() as folder:
        spec = {
          'kind': 'step',
          'model': model,
          'method': {'name': name, **METHODS[name]},
          'batch': args.batch,
          'attack_steps': args.attack_steps,
          'weights': os.path.join(folder, 'weights.npz'),
        }
        twin, size = first_step(args.torch, 'benchmarks.torch_twin', spec)
        ours, own = first_step(sys.executable, 'benchmarks.jax_side', spec)
      if own != size:
        raise SystemExit(f'{model} has {own} weights, the twin {size}')
      pairs = list(zip(ours, twin, strict=True))
      worst = max([worst, *(abs(a - b) / abs(b) for a, b in pairs)])
      cells = ' | '.join(f'{a:.5f} | {b:.5f}' for a, b in pairs)
      print(f'| {model} | {name} | {cells} |', flush=True)
  print(f'\nlargest relative difference {worst:.1e}')
  if worst > _TOLERANCE:
    raise SystemExit(f'more than {_TOLERANCE}: the twin does other work')


if __name__ == '__main__':
  main()
