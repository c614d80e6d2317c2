"""Programs for any number of rows, compiled for a few batch sizes only.

The sizes are called buckets: rows are cut into full ones, and the rest is
padded. On a CPU the batches of a call run at once, one on each device or, where
there is but one, one on each core: a network small enough to be attacked there
keeps one core busy, but not two.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
from functools import partial
import math
import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_robust_kd import parallel
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
# Pixels of a batch on a CPU, and least and most images: what small networks
# compute then stays in a core's cache. Digits in batches of 64 took 1.2 to 1.5
# times as long for each image as in batches of 16.
_CPU_PIXELS, _CPU_IMAGES = 8 * 32 * 32, (8, 16)


class Runner(NamedTuple):
  """How programs are compiled and batches are cut.

  Attributes:
    buckets: batch sizes, each a multiple of the number of devices.
    devices: what programs run on.
    say: told what was compiled and how long it took.
    tick: told how many steps of how many images are behind.
  """

  buckets: tuple[int, ...]
  devices: Devices = ONE_DEVICE
  say: Callable[[str], None] = lambda text: None
  tick: Callable[[int], None] = lambda steps: None


def make_buckets(
  batch_size: int, num_devices: int, image_shape: tuple[int, ...]
) -> tuple[int, ...]:
  """Returns the batch size and, if not tiny, a quarter of it.

  On a CPU there is one bucket, of few images.

  Args:
    batch_size: largest.
    num_devices: of which each size is a multiple.
    image_shape: (H, W, C).
  """
  if jax.default_backend() == 'cpu':
    fitting = _CPU_PIXELS // math.prod(image_shape[:2])
    few = min(max(fitting, _CPU_IMAGES[0]), _CPU_IMAGES[1])
    return (min(batch_size, few * num_devices),)
  quarter = batch_size // 4 // num_devices * num_devices
  return (batch_size, quarter) if quarter >= 8 else (batch_size,)


def make_runner(
  batch_size: int, num_images: int, image_shape: tuple[int, ...]
) -> Runner:
  """Returns how batches are cut, over all devices of this process.

  Args:
    batch_size: images at once at most, over all devices.
    num_images: that there are.
    image_shape: (H, W, C).
  """
  number = parallel.num_devices()
  size = math.ceil(min(batch_size, num_images) / number) * number
  buckets = make_buckets(size, number, image_shape)[:num_images]
  if number == 1:
    return Runner(buckets)
  return Runner(buckets, Devices(number, parallel.pmap_rows))


def even_size(
  count: int, bucket: int, lanes: int, multiple: int, have: Iterable[int]
) -> int:
  """Returns the batch size that leaves the least work undone on a CPU.

  On two cores both 55 images in batches of 8 and those in batches of 7 are 4
  batches after one another; of the 64 and 56 images, 9 and 1 are too many.

  Args:
    count: images.
    bucket: largest size.
    lanes: batches that run at once.
    multiple: what each size is a multiple of.
    have: sizes that are compiled. One of them is taken, unless all are much
      smaller than they should be.
  """

  def slots(size: int) -> int:
    return math.ceil(count / (size * lanes)) * size * lanes

  rounds = math.ceil(count / (bucket * lanes))
  best = math.ceil(count / (rounds * lanes * multiple)) * multiple
  fitting = [size for size in have if 2 * size > best]
  return min(fitting, key=slots) if fitting else best


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


def make_program(
  name: str, function: partial, runner: Runner, seldom: bool = False
) -> Callable:
  """Compiles `function` once for each bucket, when first needed.

  Programs outlive the call: the same function of the same network with weights
  of the same shapes finds them again. A network without weights among its
  arguments may close over some that change; it is compiled anew.

  Args:
    name: for the log.
    function: ((apply, scalars), rows) -> tree of [n, ...], a function with its
      first arguments, all hashable: it is found again by these.
    runner: how.
    seldom: whether it runs so seldom that compiling it fast counts for more.

  Returns:
    The same, for trees of any number of rows, as NumPy arrays.
  """
  own = {}
  number = runner.devices.number
  recipe = (function.func, function.args, runner.devices)

  def prepare(size, *args):
    begin = time.perf_counter()
    program = _compile(function, runner.devices, seldom, *args)
    seconds = time.perf_counter() - begin
    runner.say(f'{name}: compiled for {size} images in {seconds:.1f} s')
    return program

  def call(apply, scalars: PyTree, rows: PyTree) -> PyTree:
    shared = (apply, scalars)
    count = len(jax.tree.leaves(rows)[0])
    programs = own
    if jax.tree.leaves(apply):
      programs = _kept(recipe, *_kinds(shared, rows))
    threads = number == 1 and jax.default_backend() == 'cpu'
    cuts = list(_cuts(count, _sizes(count, runner, programs)))

    def cut(first, size):
      return jax.tree.map(
        lambda x: _pad(x[first : first + size], size).reshape(
          number, -1, *x.shape[1:]
        ),
        rows,
      )

    def run(place):
      return jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, *x.shape[2:]),
        programs[place[1]](shared, cut(*place)),
      )

    for first, size in cuts:
      if size not in programs:
        programs[size] = prepare(size, shared, cut(first, size))
    parts = (_pool().map if threads and len(cuts) > 1 else map)(run, cuts)
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)

  return call


def _sizes(count: int, runner: Runner, have: Iterable[int]) -> tuple[int, ...]:
  """The buckets; on a CPU one, that keeps all devices or cores as busy."""
  if jax.default_backend() != 'cpu' or len(runner.buckets) > 1:
    return runner.buckets
  number = runner.devices.number
  lanes = _num_cores() if number == 1 else 1
  return (even_size(count, max(runner.buckets), lanes, number, have),)


def _compile(
  function: Callable, devices: Devices, seldom: bool, shared: PyTree, rows: Any
) -> Callable:
  """Compiles for arguments like these, with matrix products in full float32."""
  with jax.default_matmul_precision('highest'):
    lowered = devices.compile(function).lower(shared, rows)
    return lowered.compile(_options(seldom))


@functools.lru_cache(maxsize=64)
def _kept(*key: Hashable) -> dict:
  """Programs by bucket: empty at first, for the caller to fill."""
  del key
  return {}


def _kinds(shared: PyTree, rows: PyTree) -> tuple[Hashable, ...]:
  """All that compiled programs depend on, but for the number of rows."""
  few = jax.tree.map(lambda x: x[:0], rows)
  leaves, tree = jax.tree.flatten((shared, few))
  places = (getattr(x, 'sharding', None) for x in leaves)
  return tree, tuple(map(jax.typeof, leaves)), tuple(places)


def _options(seldom: bool) -> dict | None:
  """Options of the compiler on a CPU, where its own level is 3.

  Programs that run once compile at level 1 in half the time; random numbers are
  most of that, and come as fast. At level 2 a loop over 16 channels takes 44 us
  in place of 98, and compiling is somewhat faster.
  """
  if jax.default_backend() != 'cpu':
    return None
  return {'xla_backend_optimization_level': 1 if seldom else 2}


def _num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
  return ThreadPoolExecutor(_num_cores())


def _pad(x: np.ndarray, size: int) -> np.ndarray:
  """Repeats the first row up to `size` rows."""
  if len(x) == size:
    return x
  return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])
