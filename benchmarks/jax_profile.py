"""Where the time of a compiled program goes, by the kind of layer."""

from pathlib import Path
import re
import tempfile

import jax


def profile(compiled, run) -> dict[str, float]:
  """Returns the share of the time in convolutions, BatchNorm and the rest.

  Every kernel of the program carries the name of the layer that asked for it.
  A fusion over two layers counts for the one that it ends in.
  """
  layer_of = {}
  for line in compiled.as_text().splitlines():
    found = re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', line)
    outer = re.search(r' (while|call|conditional)\(', line)
    if found and not outer:  # those contain others, which are counted
      layer_of[found[1]] = found[2]
  total = {'conv': 0.0, 'norm': 0.0, 'other': 0.0}
  for name, seconds in _kernel_times(run):
    if name in layer_of:
      total[_kind(layer_of[name])] += seconds
  whole = sum(total.values()) or 1.0
  return {k: v / whole for k, v in total.items()}


def _kind(op_name: str) -> str:
  layers = re.findall(
    r'/(\w*norm\d?|conv\d|stem|shortcut|\w+_conv)(?=/)', op_name
  )
  if not layers:
    return 'other'
  return 'norm' if 'norm' in layers[-1] else 'conv'


def _kernel_times(run):
  """Yields name and duration of what XLA's threads executed."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (file,) = Path(folder).rglob('*.xplane.pb')
    profiled = jax.profiler.ProfileData.from_file(str(file))
  for plane in profiled.planes:
    for line in plane.lines:
      if line.name.startswith('tf_XLA'):
        yield from ((e.name, e.duration_ns) for e in line.events)
