"""Programs for any number of rows, compiled for one batch size only.

Rows are cut into batches of that size and the last one is padded. The size is
chosen before an evaluation starts, from its settings alone: rounding differs
with the batch size, so an image's result must not depend on how many images are
left or on what the process has compiled before.

On a CPU the batches of a call run at once, one on each device or, where there
is but one, one on each core: a network small enough to be attacked there keeps
one core busy, but not two.
"""

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
import functools
from functools import partial
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_robust_kd.core import PyTree
from jax_robust_kd.runtime import cores, parallel


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
_POOL = 256


class Runner(NamedTuple):
  """How programs are compiled and batches are cut.

  Attributes:
    size: rows of every batch, over all devices, of which it is a multiple.
    devices: what programs run on.
    say: told what was compiled and how long it took.
    tick: told how many steps of how many images are behind.
  """

  size: int
  devices: Devices = ONE_DEVICE
  say: Callable[[str], None] = lambda text: None
  tick: Callable[[int], None] = lambda steps: None

  @property
  def pool(self) -> int:
    """Images that are attacked, and kept on disk, at once."""
    return max(_POOL, 4 * self.size)

  @property
  def identity(self) -> str:
    """All that rounding depends on: rows on a device, images of a pool."""
    return f'{self.size // self.devices.number} rows, pools of {self.pool}'


def make_runner(
  batch_size: int, num_images: int, image_shape: tuple[int, ...]
) -> Runner:
  """Returns how batches are cut, over all devices of this process.

  On a CPU a device takes few images, the same number however many devices there
  are; elsewhere its part of the batch.

  Args:
    batch_size: images at once at most, over all devices.
    num_images: that there are.
    image_shape: (H, W, C).
  """
  number = parallel.num_devices()
  each = math.ceil(min(batch_size, num_images) / number)
  if jax.default_backend() == 'cpu':
    fitting = _CPU_PIXELS // math.prod(image_shape[:2])
    few = min(max(fitting, _CPU_IMAGES[0]), _CPU_IMAGES[1])
    each = min(few, batch_size, num_images)
  return Runner(
    each * number,
    ONE_DEVICE if number == 1 else Devices(number, parallel.pmap_rows),
  )


def make_program(
  name: str, function: partial, runner: Runner, seldom: bool = False
) -> Callable:
  """Compiles `function` for the runner's batch size, when first needed.

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

  def prepare(*args):
    begin = time.perf_counter()
    program = _compile(function, runner.devices, seldom, *args)
    seconds = time.perf_counter() - begin
    runner.say(f'{name}: compiled for {runner.size} images in {seconds:.1f} s')
    return program

  def call(apply, scalars: PyTree, rows: PyTree) -> PyTree:
    shared = (apply, scalars)
    count = len(jax.tree.leaves(rows)[0])
    programs = own
    if jax.tree.leaves(apply):
      programs = _kept(recipe, *_kinds(shared, rows))
    threads = number == 1 and jax.default_backend() == 'cpu'
    firsts = range(0, count, runner.size)

    def cut(first):
      return jax.tree.map(
        lambda x: _pad(x[first : first + runner.size], runner.size).reshape(
          number, -1, *x.shape[1:]
        ),
        rows,
      )

    def run(first):
      return jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, *x.shape[2:]),
        programs[runner.size](shared, cut(first)),
      )

    if runner.size not in programs:
      programs[runner.size] = prepare(shared, cut(0))
    parts = (_pool().map if threads and len(firsts) > 1 else map)(run, firsts)
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)

  return call


def _compile(
  function: Callable, devices: Devices, seldom: bool, shared: PyTree, rows: Any
) -> Callable:
  """Compiles for arguments like these, with matrix products in full float32."""
  with jax.default_matmul_precision('highest'):
    lowered = devices.compile(function).lower(shared, rows)
    return lowered.compile(_options(seldom))


@functools.lru_cache(maxsize=64)
def _kept(*key: Hashable) -> dict:
  """Programs by batch size: empty at first, for the caller to fill."""
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


@functools.cache
def _pool() -> ThreadPoolExecutor:
  return ThreadPoolExecutor(len(cores.available()))


def _pad(x: np.ndarray, size: int) -> np.ndarray:
  """Repeats the first row up to `size` rows."""
  if len(x) == size:
    return x
  return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])
