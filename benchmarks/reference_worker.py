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
  return F.conv2d(x, w[f'{name}/kernel'], stride=stride, padding=1)


def _norm(w, name, x):
  leaves = (w[f'{name}/{leaf}'] for leaf in ('mean', 'var', 'scale', 'bias'))
  return F.batch_norm(x, *leaves)


def _head(w, x):
  return F.linear(x.mean((2, 3)), w['head/kernel'], w['head/bias'])


def digits(w: dict, x: torch.Tensor) -> torch.Tensor:
  """The network of tests/helpers/golden_digits.py."""
  for number, stride in ((1, 1), (2, 2)):
    x = F.relu(_norm(w, f'bn{number}', _conv(w, f'conv{number}', x, stride)))
  return _head(w, x)


def resnet20(w: dict, x: torch.Tensor) -> torch.Tensor:
  """He et al. 2015, section 4.2, with shortcuts of option A."""
  x = (x - w['mean']) / w['std']
  x = F.relu(_norm(w, 'stem_norm', _conv(w, 'stem', x)))
  for stage in (1, 2, 3):
    for block in (1, 2, 3):
      name = f'stage{stage}_block{block}'
      stride = 2 if stage > 1 and block == 1 else 1
      y = _conv(w, f'{name}/conv1', x, stride)
      y = _conv(w, f'{name}/conv2', F.relu(_norm(w, f'{name}/norm1', y)))
      y = _norm(w, f'{name}/norm2', y)
      extra = (y.shape[1] - x.shape[1]) // 2
      x = x[:, :, ::stride, ::stride]
      x = F.relu(y + F.pad(x, (0, 0, 0, 0, extra, extra)))
  return _head(w, x)


def read(path: str, count: int, layout: torch.memory_format) -> tuple:
  """Returns the network, [count, C, H, W] images and labels of a file.

  Kernels are turned from HWIO to OIHW, images from NHWC to NCHW; `layout` is
  how both lie in memory.
  """
  with np.load(path) as stored:
    w = {key: torch.from_numpy(stored[key]) for key in stored.files}
  image, label = w.pop('image')[:count], w.pop('label')[:count]
  network = digits if 'conv1/kernel' in w else resnet20
  for key, value in w.items():
    if value.ndim == 4:
      w[key] = value.permute(3, 2, 0, 1).contiguous(memory_format=layout)
    elif value.ndim == 2:
      w[key] = value.T.contiguous()
    elif key in ('mean', 'std'):
      w[key] = value.float().view(1, 3, 1, 1)
  image = image.permute(0, 3, 1, 2).contiguous(memory_format=layout)
  return lambda x: network(w, x), image, label.long()


def run(spec: dict) -> dict:
  """Attacks a network with the standard suite.

  Args:
    spec: 'reference', the program's folder; 'network', a file of
      `autoattack_networks`; 'norm', 'epsilon', 'seed'; 'count', images, or
      'rows', which; 'batch', images of a call; 'threads'; 'runs', how often;
      'layout', 'contiguous_format' or 'channels_last'.

  Returns:
    'clean' and 'robust', a flag for each image, and 'seconds', for each run
    those of each attack and of the whole.
  """
  sys.path.insert(0, spec['reference'])
  from autoattack import AutoAttack  # type: ignore[import-not-found]

  torch.set_num_threads(spec['threads'])
  layout = getattr(torch, spec['layout'])
  forward, image, label = read(spec['network'], spec['count'], layout)
  rows = spec.get('rows', range(spec['count']))
  image, label = image[list(rows)], label[list(rows)]
  adv, seconds = image, []
  for _ in range(spec['runs']):
    marks = {}
    begin = time.perf_counter()
    attack = AutoAttack(
        forward, norm=_NORMS[spec['norm']], eps=spec['epsilon'],
        seed=spec['seed'], device='cpu', version='standard',
    )  # fmt: skip
    attack.logger.log = lambda text: _mark(marks, text)
    adv = attack.run_standard_evaluation(image, label, bs=spec['batch'])
    seconds.append(_durations(marks, begin))
  with torch.no_grad():
    clean, robust = (forward(x).argmax(1) == label for x in (image, adv))
  flags = {'clean': clean.tolist(), 'robust': robust.tolist()}
  return {**flags, 'seconds': seconds}


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
