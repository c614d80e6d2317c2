"""Programs for any number of rows, compiled for a few batch sizes only.

The sizes are called buckets: rows are cut into full ones, and the rest is
padded.
"""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_robust_kd.core import PyTree, UserError


class Devices(NamedTuple):
  """What programs run on.

  Attributes:
    number: of devices.
    compile: function of (shared, rows) -> an object with `lower`, which takes
      rows [number, n, ...] and returns the same.
  """

  number: int
  compile: Callable[[Callable], Any]


def _on_one(function: Callable) -> Any:
  def first(tree):
    return jax.tree.map(lambda x: x[0], tree)

  def call(shared, rows):
    return jax.tree.map(lambda x: x[None], function(shared, first(rows)))

  return jax.jit(call)


ONE_DEVICE = Devices(1, _on_one)


class Runner(NamedTuple):
  """How programs are compiled and batches are cut.

  Attributes:
    buckets: batch sizes, each a multiple of the number of devices.
    devices: what programs run on.
    highest: whether matrix products are in full float32.
    say: told what was compiled and how long it took.
    tick: told how many steps of how many images are behind.
  """

  buckets: tuple[int, ...]
  devices: Devices = ONE_DEVICE
  highest: bool = True
  say: Callable[[str], None] = lambda text: None
  tick: Callable[[int], None] = lambda steps: None


def make_buckets(batch_size: int, num_devices: int) -> tuple[int, ...]:
  """Returns the batch size and, if not tiny, a quarter of it."""
  quarter = batch_size // 4 // num_devices * num_devices
  return (batch_size, quarter) if quarter >= 8 else (batch_size,)


def check_buckets(buckets: tuple[int, ...], num_images: int, devices: int):
  """Refuses buckets that cannot be filled.

  Raises:
    UserError: no bucket, one that is not a multiple of the number of devices,
      or more buckets than images.
  """
  if not buckets or any(b < 1 or b % devices for b in buckets):
    raise UserError(
      f'buckets={buckets} must be batch sizes above 0 that divide over '
      f'{devices} device(s); use multiples of {devices}'
    )
  if len(buckets) > num_images:
    raise UserError(
      f'buckets={buckets} are more than the {num_images} image(s); give one '
      'bucket, such as the number of images'
    )


def _cuts(count: int, buckets: tuple[int, ...]) -> Iterator[tuple[int, int]]:
  """Yields (first row, bucket): the largest that is full, then the smallest."""
  first, sizes = 0, sorted(buckets, reverse=True)
  while first < count:
    size = next((s for s in sizes if s <= count - first), sizes[-1])
    yield first, size
    first += size


def make_program(name: str, function: Callable, runner: Runner) -> Callable:
  """Compiles `function` once for each bucket, when first needed.

  Args:
    name: for the log.
    function: ((apply, scalars), rows) -> tree of [n, ...].
    runner: how.

  Returns:
    The same, for trees of any number of rows, as NumPy arrays.
  """
  programs = {}
  exact = jax.default_matmul_precision('highest')
  number = runner.devices.number

  def compiled(size, *args):
    if size not in programs:
      begin = time.perf_counter()
      with exact if runner.highest else contextlib.nullcontext():
        lowered = runner.devices.compile(function).lower(*args)
        programs[size] = lowered.compile()
      seconds = time.perf_counter() - begin
      runner.say(f'{name}: compiled for {size} images in {seconds:.1f} s')
    return programs[size](*args)

  def call(apply, scalars: PyTree, rows: PyTree) -> PyTree:
    shared, parts = (apply, scalars), []
    for first, size in _cuts(len(jax.tree.leaves(rows)[0]), runner.buckets):
      part = jax.tree.map(lambda x: x[first : first + size], rows)
      real = len(jax.tree.leaves(part)[0])
      full = jax.tree.map(
        lambda x: _pad(x, size).reshape(number, -1, *x.shape[1:]),
        part,
      )
      result = compiled(size, shared, full)
      parts.append(
        jax.tree.map(
          lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:real],
          result,
        )
      )
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  return call


def _pad(x: np.ndarray, size: int) -> np.ndarray:
  """Repeats the first row up to `size` rows."""
  return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])
