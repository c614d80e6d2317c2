"""Many processes, one run: how they start, meet and end together.

Every process runs the same program. Weights and checkpoints are those of all;
text is written by the first one only. The others say nothing but errors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import os
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np

from jax_robust_kd.core import Preempted, PyTree, UserError

# Tells the child which files to say on that it started, and to hear on that its
# parent is gone.
_CHILD = 'JAX_ROBUST_KD_PIPES'
LOST = 'another process of this run was lost'
AGAIN = (
  'start the same command on all of them again, and it goes on from the last '
  'checkpoint'
)
# Seconds without a sign of life after which a process counts as lost.
_LOST_AFTER = 30


class Start(NamedTuple):
  """How the processes of a run find one another.

  Attributes:
    coordinator: 'host:port' of process 0, or '' where JAX finds out by itself:
      on TPU pods, under SLURM, Open MPI and Kubernetes.
    num_processes: of the run, with `coordinator`.
    process_id: of this one, with `coordinator`.
    timeout: seconds to wait for all others.
  """

  coordinator: str
  num_processes: int
  process_id: int
  timeout: int


def check_start(start: Start) -> None:
  """Checks what was given.

  Raises:
    UserError: the three flags of an explicit start are not all there, or do
      not fit.
  """
  if not start.coordinator:
    if start.num_processes or start.process_id >= 0:
      raise UserError(
        '--num_processes and --process_id need --coordinator HOST:PORT of '
        'process 0'
      )
    return
  host, _, port = start.coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise UserError(f'--coordinator={start.coordinator} must be HOST:PORT')
  if not 0 <= start.process_id < start.num_processes:
    raise UserError(
      f'--process_id={start.process_id} must be in 0 to --num_processes - 1, '
      f'which is {start.num_processes - 1}'
    )


def join(start: Start) -> None:
  """Joins the other processes; call it before anything touches a device.

  The runtime aborts this process if they do not all come, or when one is lost
  later: run under `supervise`, which then ends in a sentence.

  Raises:
    UserError: there is no cluster that JAX knows how to find.
  """
  try:
    jax.distributed.initialize(
      start.coordinator or None,
      start.num_processes or None,
      start.process_id if start.coordinator else None,
      initialization_timeout=start.timeout,
      heartbeat_timeout_seconds=_LOST_AFTER,
    )
  except ValueError as error:
    raise UserError(
      '--distributed finds no cluster here (TPU pod, SLURM, Open MPI, '
      'Kubernetes); give --coordinator HOST:PORT, --num_processes and '
      f'--process_id ({str(error).splitlines()[0]})'
    ) from None
  if is_child():
    started, _ = map(int, os.environ[_CHILD].split())
    os.write(started, b'1')


def is_child() -> bool:
  """Returns whether this process runs under `supervise`."""
  return _CHILD in os.environ


def follow_parent() -> None:
  """Ends this child when its parent is gone, however that ended."""
  _, lifeline = map(int, os.environ[_CHILD].split())

  def wait():
    os.read(lifeline, 1)
    os._exit(Preempted.exit_code)

  threading.Thread(target=wait, daemon=True).start()


def supervise(command: list[str], timeout: int) -> int:
  """Runs a process of a cluster as a child; returns its exit code.

  The runtime of JAX aborts a process that has lost another, in a stack trace.
  Seen from outside, that is a sentence and the exit code that launchers start
  again on.
  """
  reader, writer = os.pipe()
  lifeline, _open_end = os.pipe()
  with subprocess.Popen(
    command,
    env={**os.environ, _CHILD: f'{writer} {lifeline}'},
    pass_fds=[writer, lifeline],
  ) as child:
    os.close(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda n, _: child.send_signal(n))
    started = os.read(reader, 1) != b''
    code = child.wait()
  if code != -signal.SIGABRT:
    return code if code >= 0 else 128 - code
  what = LOST
  if not started:
    what = f'not all processes of this run came up within {timeout} s'
  print(f'stopped: {what}; {AGAIN}', file=sys.stderr)
  return Preempted.exit_code


def is_loss(error: Exception) -> bool:
  """Returns whether an error is how JAX tells that another process is gone."""
  marks = ('gloo', 'deadline_exceeded', 'unavailable', 'connection', 'aborted')
  return jax.process_count() > 1 and any(
    mark in str(error).lower() for mark in marks
  )


def is_first() -> bool:
  """Returns whether this is the process that writes text."""
  return jax.process_index() == 0


def process_slice() -> slice:
  """Returns the slice of a list of work items that this process does."""
  return slice(jax.process_index(), None, jax.process_count())


def owns(number: int) -> bool:
  """Returns whether this process does the work item of this number."""
  return number % jax.process_count() == jax.process_index()


def barrier(name: str) -> None:
  """Waits until every process has called this with the same name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def total(values: np.ndarray) -> np.ndarray:
  """Returns the sum over all processes, on each of them."""
  if jax.process_count() == 1:
    return values
  return np.asarray(multihost_utils.process_allgather(values)).sum(axis=0)


def gather_slices(values: np.ndarray, count: int) -> np.ndarray:
  """Gathers the rows that each process computed for its `process_slice`.

  Args:
    values: [rows of this process, ...].
    count: rows of all processes together.

  Returns:
    [count, ...] in the order of the rows, on every process.
  """
  number = jax.process_count()
  if number == 1:
    return values
  size = -(-count // number)
  padded = np.zeros((size, *values.shape[1:]), values.dtype)
  padded[: len(values)] = values
  slices = np.asarray(multihost_utils.process_allgather(padded))
  return np.swapaxes(slices, 0, 1).reshape(-1, *values.shape[1:])[:count]


def to_global(tree: PyTree) -> PyTree:
  """Makes the same NumPy arrays of all processes one array of all of them.

  Orbax then lets each process write a part of it.
  """
  if jax.process_count() == 1:
    return tree
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('all',))
  return multihost_utils.host_local_array_to_global_array(
    tree, mesh, jax.sharding.PartitionSpec()
  )


@contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
  """Notices SIGTERM, sent to any of the processes.

  Yields:
    step -> whether to save at this step and end, alike on all processes.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  signals = []
  before = signal.signal(
    signal.SIGTERM, lambda number, _: signals.append(number)
  )
  try:
    yield lambda step: bool(signals)
  finally:
    signal.signal(signal.SIGTERM, before)
