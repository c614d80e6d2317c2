"""Runs a function on any number of rows, compiled for one batch size only.

Rows are cut into batches of that size, the last one is padded, and batches run
on all devices. The size is chosen before an evaluation starts, from its
settings alone: rounding differs with the batch size, so an image's result must
not depend on how many images are left or on what was compiled before.

On a CPU with a single device, batches run on all cores at once: a network small
enough to be attacked there keeps one core busy, but not two.
"""

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
import functools
from functools import partial
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_robust_kd.core import SILENT, Progress, PyTree
from jax_robust_kd.runtime import cores, parallel

Mapped = Callable[[PyTree, PyTree], PyTree]  # (shared, rows) -> per-row values


class Devices(NamedTuple):
  """The devices that programs run on.

  Attributes:
    number: of devices.
    compile: function of (shared, rows) -> an object with `lower`, which takes
      rows [number, n, ...] and returns the same.
  """

  number: int
  compile: Callable[[Mapped], Any]


def _on_one(function: Mapped) -> Any:
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
  """How rows are cut into batches, and where these run.

  Attributes:
    size: rows of every batch over all devices, a multiple of their number.
    devices: the devices that programs run on.
    progress: told what was compiled, and the steps of images that are done.
  """

  size: int
  devices: Devices = ONE_DEVICE
  progress: Progress = SILENT

  @property
  def pool(self) -> int:
    """Images that are attacked, and kept on disk, at once."""
    return max(_POOL, 4 * self.size)

  @property
  def identity(self) -> str:
    """All that rounding depends on: rows on a device, images of a pool."""
    return f'{self.size // self.devices.number} rows, pools of {self.pool}'


def make_runner(
  batch_size: int,
  num_images: int,
  image_shape: tuple[int, ...],
  progress: Progress = SILENT,
) -> Runner:
  """Returns a runner over all devices of this process.

  On a CPU a device takes 8 to 16 images, whatever the number of devices;
  elsewhere it takes its part of `batch_size`. No batch is larger than
  `num_images` or `batch_size`.

  Args:
    batch_size: largest number of images in a batch, over all devices.
    num_images: number of images in total.
    image_shape: (H, W, C).
    progress: told what was compiled, and the steps of images that are done.
  """
  number = parallel.num_devices()
  each = math.ceil(min(batch_size, num_images) / number)
  if jax.default_backend() == 'cpu':
    fitting = _CPU_PIXELS // math.prod(image_shape[:2])
    few = min(max(fitting, _CPU_IMAGES[0]), _CPU_IMAGES[1])
    each = min(few, batch_size, num_images)
  devices = ONE_DEVICE if number == 1 else Devices(number, parallel.pmap_rows)
  return Runner(each * number, devices, progress)


# (apply, scalars, rows) -> tree of [N, ...] NumPy arrays
Program = Callable[[Any, PyTree, PyTree], PyTree]


def make_program(
  name: str, function: partial, runner: Runner, seldom: bool = False
) -> Program:
  """Returns a function of any number of rows, which runs batch by batch.

  It is compiled for the runner's batch size when first called. The program
  outlives the call: the same function of the same network with weights of the
  same shapes finds it again. A network without weights among its arguments may
  close over some that change; it is compiled anew.

  Args:
    name: name in the log.
    function: ((apply, scalars), rows) -> tree of [n, ...], a function with its
      first arguments, all hashable: programs are found again by these.
    runner: batch size, devices and progress.
    seldom: whether it runs so seldom that compiling it fast counts for more.

  Returns:
    (apply, scalars, rows) -> tree: `apply` is a pytree that is called, such as
    `jax.tree_util.Partial`; `scalars` a pytree that all rows share; `rows` a
    pytree of [N, ...] arrays; the result a tree of [N, ...] NumPy arrays.
  """
  unshared = {}
  number = runner.devices.number
  key = (function.func, function.args, runner.devices)

  def prepare(*args):
    begin = time.perf_counter()
    program = _compile(function, runner.devices, seldom, *args)
    seconds = time.perf_counter() - begin
    runner.progress.say(
      f'{name}: compiled for {runner.size} images in {seconds:.1f} s'
    )
    return program

  def call(apply, scalars: PyTree, rows: PyTree) -> PyTree:
    shared = (apply, scalars)
    count = len(jax.tree.leaves(rows)[0])
    programs = unshared
    if jax.tree.leaves(apply):
      programs = _programs(key, *_kinds(shared, rows))

    def cut(first):
      return _cut(rows, first, runner.size, number)

    def run(first):
      batch = programs[runner.size](shared, cut(first))
      return jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), batch
      )

    if runner.size not in programs:
      programs[runner.size] = prepare(shared, cut(0))
    batches = _map(run, range(0, count, runner.size), number)
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *batches)

  return call


def _cut(rows: PyTree, first: int, size: int, number: int) -> PyTree:
  """Returns a padded batch from row `first` on, [devices, n, ...]."""

  def one(x):
    batch = x[first : first + size]
    if len(batch) < size:
      padding = np.repeat(batch[:1], size - len(batch), axis=0)
      batch = np.concatenate([batch, padding])
    return batch.reshape(number, -1, *x.shape[1:])

  return jax.tree.map(one, rows)


def _map(
  run: Callable[[int], PyTree], firsts: range, number: int
) -> Iterable[PyTree]:
  """Runs all batches; on the one device of a CPU on all its cores at once."""
  threads = number == 1 and jax.default_backend() == 'cpu'
  return (_pool().map if threads and len(firsts) > 1 else map)(run, firsts)


def _compile(
  function: Mapped, devices: Devices, seldom: bool, shared: PyTree, rows: Any
) -> Mapped:
  """Compiles for arguments like these, with matrix products in full float32."""
  with jax.default_matmul_precision('highest'):
    lowered = devices.compile(function).lower(shared, rows)
    return lowered.compile(_options(seldom))


@functools.lru_cache(maxsize=64)
def _programs(*key: Hashable) -> dict:
  """Programs by batch size: empty at first, for the caller to fill."""
  del key
  return {}


def forget_programs() -> None:
  """Frees all programs that were compiled here."""
  _programs.cache_clear()


def _kinds(shared: PyTree, rows: PyTree) -> tuple[Hashable, ...]:
  """All that compiled programs depend on, but for the number of rows."""
  none = jax.tree.map(lambda x: x[:0], rows)
  leaves, tree = jax.tree.flatten((shared, none))
  shardings = (getattr(x, 'sharding', None) for x in leaves)
  return tree, tuple(map(jax.typeof, leaves)), tuple(shardings)


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
