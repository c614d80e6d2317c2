"""Runs AutoAttack's reference program; a Python with PyTorch calls this file.

The program, github.com/fra31/auto-attack at a392200, is a folder that the
caller names. This module does without JAX, which that Python need not have.

python -m benchmarks.reference_worker '{"reference": ..., ...}' prints one line
of JSON; see `run` for what it is given.
"""

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

_NORMS = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
_DONE = 'robust accuracy after '


def _conv(w, name, x, stride=1):
  return F.conv2d(x, w[f'{name}.weight'], stride=stride, padding=1)


def _norm(w, name, x):
  return F.batch_norm(
    x, *(w[f'{name}.{key}'] for key in ('running_mean', 'running_var')),
    *(w[f'{name}.{key}'] for key in ('weight', 'bias')),
  )  # fmt: skip


def digits(w: dict, x: torch.Tensor) -> torch.Tensor:
  """The network of tests/golden_digits.py."""
  for number, stride in ((1, 1), (2, 2)):
    x = F.relu(_norm(w, f'bn{number}', _conv(w, f'conv{number}', x, stride)))
  return F.linear(x.mean((2, 3)), w['fc.weight'], w['fc.bias'])


def small_resnet(w: dict, x: torch.Tensor) -> torch.Tensor:
  """Our SmallResNet: He et al. 2015, section 4.2, shortcuts of option A."""
  x = F.relu(_norm(w, 'bn1', _conv(w, 'conv1', x)))
  for stage in (1, 2, 3):
    for block in range(sum(f'layer{stage}.{i}.conv1.weight' in w for i in range(99))):
      name = f'layer{stage}.{block}'
      stride = 2 if stage > 1 and block == 0 else 1
      y = F.relu(_norm(w, f'{name}.bn1', _conv(w, f'{name}.conv1', x, stride)))
      y = _norm(w, f'{name}.bn2', _conv(w, f'{name}.conv2', y))
      extra = y.shape[1] - x.shape[1]
      x = F.pad(x[:, :, ::stride, ::stride],
                (0, 0, 0, 0, extra // 2, extra - extra // 2))
      x = F.relu(y + x)
  return F.linear(x.mean((2, 3)), w['linear.weight'], w['linear.bias'])


def run(spec: dict) -> dict:
  """Attacks a network with the standard suite.

  Args:
    spec: 'reference', the program's folder; 'network', an .npz with `image`
      [N, H, W, C], `label` [N] and the weights; 'norm', 'epsilon', 'count',
      'seed'; 'batch', images of a call; 'threads'; 'runs', how often.

  Returns:
    'clean' and 'robust', [count] flags, and 'seconds', for each run those of
    each attack and of the whole.
  """
  sys.path.insert(0, spec['reference'])
  from autoattack import AutoAttack  # type: ignore[import-not-found]

  torch.set_num_threads(spec['threads'])
  layout = torch.channels_last if spec.get('channels_last') else torch.contiguous_format
  with np.load(spec['network']) as stored:
    arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
  image = arrays.pop('image')[: spec['count']].permute(0, 3, 1, 2).float()
  label = arrays.pop('label')[: spec['count']].long()
  w = {k: v.contiguous(memory_format=layout) if v.ndim == 4 else v for k, v in arrays.items()}
  image = image.contiguous(memory_format=layout)
  network = digits if 'fc.weight' in w else small_resnet
  forward = lambda x: network(w, x)  # noqa: E731
  seconds = []
  for _ in range(spec['runs']):
    marks = {}
    begin = time.perf_counter()
    attack = AutoAttack(
        forward, norm=_NORMS[spec['norm']], eps=spec['epsilon'],
        seed=spec['seed'], device='cpu', verbose=True, version='standard',
    )  # fmt: skip
    attack.logger.log = lambda text: _mark(marks, text)
    adv = attack.run_standard_evaluation(image, label, bs=spec['batch'])
    seconds.append(_durations(marks, begin))
  with torch.no_grad():
    clean, robust = (forward(x).argmax(1) == label for x in (image, adv))
  return {
    'clean': clean.tolist(), 'robust': robust.tolist(), 'seconds': seconds
  }  # fmt: skip


def _mark(marks: dict, text: str) -> None:
  """Notes the time at which an attack has ended, as the program's log says."""
  print(text, file=sys.stderr)
  if text.startswith('initial accuracy'):
    marks['clean'] = time.perf_counter()
  elif text.startswith(_DONE):
    marks[text[len(_DONE) :].partition(':')[0].lower()] = time.perf_counter()


def _durations(marks: dict, begin: float) -> dict:
  found, last = {}, begin
  for name, end in marks.items():
    found[name], last = end - last, end
  return {**found, 'all': time.perf_counter() - begin}


if __name__ == '__main__':
  stdout, sys.stdout = sys.stdout, sys.stderr
  found = run(json.loads(sys.argv[1]))
  print(json.dumps(found), file=stdout)
