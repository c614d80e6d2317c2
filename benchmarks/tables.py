"""Turns what was measured into Markdown."""

import statistics

NAMES = ('steps', 'loops', 'networks', 'layers')

_TITLES = {
  'step': """
## One training step, batch {batch}

Crop and flip, {attack_steps} attack steps (l_inf 8/255, BatchNorm by running \
averages), loss, SGD. The teacher is a ResNet-18 for every student.

| student | method | rounds | ours images/s | s, min / median | torch images/s \
| s, min / median | ours / torch | GFLOP/s | compile s | buffers MB | peak MB \
| torch |
|---|---|---|---|---|---|---|---|---|---|---|---|---|""",
  'loops': """
## Inside scan and cond, batch {batch}

Seconds, min / median; a gradient in the scan is a third of \
{micro_batches} micro-batches.

| network | what | inside | outside | inside / outside |
|---|---|---|---|---|""",
  'networks': """
## Networks, batch {batch}

| network | what | ours s, min / median | torch s, min / median \
| ours / torch | GFLOP/s | conv, norm, other % | torch % |
|---|---|---|---|---|---|---|---|""",
  'layers': """
## Layers, batch {batch}

| layer | ours ms, min / median | torch ms, min / median | ours / torch |
|---|---|---|---|""",
}


def header(facts: dict) -> str:
  """Versions and machine."""
  versions = ', '.join(
    f'{name} {facts[name]}' for name in ('python', 'jax', 'jaxlib', 'flax')
  )
  changed = ', with changes' if facts['modified'] else ''
  return (
    f'{versions}; torch {facts["torch"]}\n'
    f'{facts["cores"]} cores of {facts["processor"] or "unknown make"}; commit '
    f'{facts["commit"]}{changed}; load average {facts["load"]:.2f}\n'
    'Speeds are of the fastest round; ours / torch above 1 means that ours '
    'is faster.\n'
  )


def title(spec: dict) -> str:
  """Head of a table."""
  return _TITLES[spec['kind']].format(**spec)


def rows(spec: dict, sides: dict) -> list[str]:
  """Rows of one entry."""
  function = {
    'step': _step_rows,
    'loops': _loop_rows,
    'networks': _network_rows,
    'layers': _layer_rows,
  }[spec['kind']]
  return [f'| {" | ".join(cells)} |' for cells in function(spec, sides)]


def _seconds(sides: dict, side: str, run: str) -> list[float]:
  return sides.get(side, {}).get('times', {}).get(run, [])


def _summary(seconds: list[float], scale: float = 1.0) -> str:
  if not seconds:
    return ''
  best, middle = min(seconds) * scale, statistics.median(seconds) * scale
  return f'{best:.3g} / {middle:.3g}'


def _ratio(sides: dict, run: str) -> str:
  ours, torch = _seconds(sides, 'ours', run), _seconds(sides, 'torch', run)
  return f'{min(torch) / min(ours):.2f}' if ours and torch else ''


def _step_rows(spec: dict, sides: dict) -> list[list[str]]:
  rounds = len(_seconds(sides, 'ours', 'step'))
  cells = [spec['model'], spec['method']['name'], str(rounds)]
  for side in ('ours', 'torch'):
    seconds = _seconds(sides, side, 'step')
    speed = f'{spec["batch"] / min(seconds):.2f}' if seconds else ''
    cells += [speed, _summary(seconds)]
  facts = sides['ours']['facts']
  rate = facts['flops'] / min(_seconds(sides, 'ours', 'step')) / 1e9
  peaks = [
    f'{sides[s]["peak"]:.0f}' if s in sides else '' for s in ('ours', 'torch')
  ]
  once = [f'{facts[name]:.0f}' for name in ('compile', 'buffers')]
  return [[*cells, _ratio(sides, 'step'), f'{rate:.0f}', *once, *peaks]]


def _loop_rows(spec: dict, sides: dict) -> list[list[str]]:
  found = []
  for what, inside, outside, count in (
    ('attack, scan against calls', 'attack, scan', 'attack, calls', 1),
    (
      'gradient by weights, scan',
      'gradient, scan',
      'gradient, outside',
      spec['micro_batches'],
    ),
    ('gradient by weights, cond', 'gradient, cond', 'gradient, outside', 1),
  ):
    a = _seconds(sides, 'ours', inside)
    b = _seconds(sides, 'ours', outside)
    ratio = f'{min(a) / count / min(b):.2f}'
    found.append(
      [spec['model'], what, _summary(a, 1 / count), _summary(b), ratio]
    )
  return found


def _network_rows(spec: dict, sides: dict) -> list[list[str]]:
  found = []
  for run in sides['ours']['times']:
    ours, torch = (_seconds(sides, s, run) for s in ('ours', 'torch'))
    rate = sides['ours']['facts']['flops'][run] / min(ours) / 1e9
    shares = [
      _shares(sides.get(s, {}).get('shares', {}).get(run, {}))
      for s in ('ours', 'torch')
    ]
    found.append(
      [spec['model'], run, _summary(ours), _summary(torch),
       _ratio(sides, run), f'{rate:.0f}', *shares]
    )  # fmt: skip
  return found


def _shares(shares: dict[str, float]) -> str:
  return ', '.join(f'{100 * v:.0f}' for v in shares.values())


def _layer_rows(spec: dict, sides: dict) -> list[list[str]]:
  found = []
  for run in sides['ours']['times']:
    ours, torch = (_seconds(sides, s, run) for s in ('ours', 'torch'))
    name = f'{run}, side {spec["matmul"]}' if run == 'matmul' else run
    found.append(
      [name, _summary(ours, 1e3), _summary(torch, 1e3), _ratio(sides, run)]
    )
  return found


def bounds(results: list) -> str:
  """Says in words what bounds each network, from what was measured."""
  peak, lines = 0.0, []
  for spec, sides in results:
    if spec['kind'] == 'layers' and _seconds(sides, 'ours', 'matmul'):
      seconds = min(_seconds(sides, 'ours', 'matmul'))
      peak = 2 * spec['matmul'] ** 3 / seconds / 1e9
      lines.append(f'A matrix product of ours reaches {peak:.0f} GFLOP/s.')
  for spec, sides in results:
    if spec['kind'] != 'networks':
      continue
    for run, shares in sides['ours']['shares'].items():
      if run.startswith('gradient') and shares:
        lines.append(_bound(spec['model'], run, shares, sides, peak))
  return '\n' + '\n'.join(lines)


def _bound(model: str, run: str, shares: dict, sides: dict, peak: float) -> str:
  seconds = min(_seconds(sides, 'ours', run))
  rate = sides['ours']['facts']['flops'][run] / seconds / 1e9
  conv, norm = shares['conv'], shares['norm']
  if rate > 0.5 * peak > 0:
    most = 'arithmetic'
  elif conv > 0.5:
    most = 'convolutions'
  else:
    most = 'memory traffic outside the convolutions'
  reached = f', {100 * rate / peak:.0f} % of that product' if peak else ''
  return (
    f'{model}, {run}, is bound by {most}: {100 * conv:.0f} % of the time in '
    f'convolutions, {100 * norm:.0f} % in BatchNorm; {rate:.0f} GFLOP/s'
    f'{reached}.'
  )
