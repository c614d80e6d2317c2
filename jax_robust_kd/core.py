"""The types that every other module uses.

Shapes are written in brackets: B images, H x W pixels, C channels, K classes.
Images are float32 in [0, 1] everywhere; models normalise inside. Losses are in
nats, one number per example, summed over classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any

AXIS = 'batch'  # name of the device axis, used by every collective


class UserError(Exception):
  """A mistake in a setting or an argument: one sentence, with the remedy.

  The command line prints it without a traceback and exits with code 2.
  """


class RunError(Exception):
  """A run cannot go on (NaN, full disk): one sentence, exit code 1."""

  exit_code = 1


class Preempted(RunError):
  """A run was stopped or lost a process: the same command resumes it."""

  exit_code = 75


class Output(NamedTuple):
  """The result of a model.

  Attributes:
    logits: [B, K] float32.
    features: 'stem', 'stage1', ... [B, h, w, c] and 'pooled' [B, d].
    batch_stats: BatchNorm's running averages after this call.
  """

  logits: Array
  features: dict[str, Array]
  batch_stats: PyTree


@struct.dataclass
class Batch:
  """A batch after augmentation; always full in training.

  Attributes:
    image: [B, H, W, C] float32 in [0, 1].
    target: [B, K] class probabilities (one-hot until mixed).
    row: [B] int32, index among the training images; the number of training
      images for `extra` images.
  """

  image: Array
  target: Array
  row: Array | None = None


# The functions that travel through this package, by name.
Forward = Callable[..., Output]  # (variables, image, mode) -> Output
OutputFn = Callable[..., Output]  # image -> Output, weights filled in
LogitsFn = Callable[..., Array]  # image [B, H, W, C] -> logits [B, K]
LossFn = Callable[[Array], Array]  # image [B, H, W, C] -> loss [B]


class Context(NamedTuple):
  """The networks and values that a method may use, besides the batch.

  Attributes:
    student: (image, batch_stats=None) -> Output, the network in training.
    teacher: image -> Output, frozen, in evaluation mode.
    heads: extra trainable weights of the method, or {}.
    progress: scalar in [0, 1], share of the training done.
    teachers: all teachers by name.
    peer: a second network in training, called as `student`, or None.
    memory: what the previous step returned in `LossOutput.memory`.
    rng: [B] keys for random draws, the same in `perturb` and `loss`.
  """

  student: OutputFn
  teacher: OutputFn
  heads: PyTree
  progress: Array
  teachers: dict[str, OutputFn] | None = None
  peer: OutputFn | None = None
  memory: PyTree = None
  rng: PyTree = None


class Ascent(NamedTuple):
  """The iterates of an inner maximization; unused ones cost nothing.

  Attributes:
    adv: [B, H, W, C], the last iterate.
    path: [S, B, H, W, C], every iterate, start excluded, last included.
  """

  adv: Array
  path: Array


Maximize = Callable[[Array, LossFn, Array], Ascent]  # (keys [B], loss, image)


class LossOutput(NamedTuple):
  """The result of a method's outer loss.

  Attributes:
    loss: scalar in nats, mean over the local batch.
    batch_stats: the student's new running averages.
    metrics: scalars for the log.
    memory: carried to the next step, the same on every device; None: unchanged.
    peer_stats: the peer's new running averages.
  """

  loss: Array
  batch_stats: PyTree
  metrics: dict[str, Array]
  memory: PyTree = None
  peer_stats: PyTree = None


OuterLoss = Callable[[Context, Batch, PyTree], LossOutput]  # ctx, batch, adv
Perturb = Callable[[Array, Context, Batch, Maximize], PyTree]  # -> adv


def no_attack(
  rng: Array, ctx: Context, batch: Batch, maximize: Maximize
) -> Array:
  """Returns the images unchanged, [B, H, W, C]: no inner maximization."""
  del rng, ctx, maximize
  return batch.image


def no_heads(rng: Array, student: Output, teacher: Output) -> PyTree:
  """Returns {}: no extra weights."""
  del rng, student, teacher
  return {}


def no_memory(
  rng: Array, student: Output, teacher: Output, num_rows: int
) -> PyTree:
  """Returns {}: nothing is carried from step to step."""
  del rng, student, teacher, num_rows
  return {}


class Progress(NamedTuple):
  """Receives the progress of a long computation.

  Attributes:
    say: text -> None, gets a line when something is compiled or finished.
    tick: steps -> None, gets the number of further steps of images.
  """

  say: Callable[[str], None] = lambda text: None
  tick: Callable[[int], None] = lambda steps: None


SILENT = Progress()

ROBUST, CLEAN = 'robust', 'clean'  # names of teachers; `ctx.teacher` is ROBUST


class Method(NamedTuple):
  """A distillation or training method: the whole extension point.

  Attributes:
    loss: (ctx, batch, adv) -> LossOutput, the outer minimization.
    perturb: (rng, ctx, batch, maximize) -> pytree of images, the inner
      maximization. `rng` holds one key per image, [B]. `maximize(rng, loss_fn,
      image) -> Ascent` ascends `loss_fn: image -> [B]` in the threat model of
      the config.
    init_heads: (rng, student, teacher) -> weights, from one Output of each.
    teachers: names of the teachers that it asks, () for none.
    init_memory: (rng, student, teacher, num_rows) -> pytree carried from step
      to step, for a training set of `num_rows` images. What `loss` hands on
      must be the same on every device: `gather` or average it first.
    peer: whether a second network is trained beside the student.
  """

  loss: OuterLoss
  perturb: Perturb = no_attack
  init_heads: Callable[..., PyTree] = no_heads
  teachers: tuple[str, ...] = (ROBUST,)
  init_memory: Callable[..., PyTree] = no_memory
  peer: bool = False


@struct.dataclass
class TrainState:
  """Everything that a restart needs; nothing else is saved."""

  step: Array  # int32, optimizer steps done
  params: PyTree  # {'student', 'heads'} and, where there is one, 'peer'
  batch_stats: PyTree  # running averages of the student
  ema_params: PyTree  # averaged student weights, or {} when off
  ema_stats: PyTree  # their own running averages, or {}: those of the student
  peer_stats: PyTree  # running averages of the peer, or {}
  memory: PyTree  # what the method carries from step to step, or {}
  opt_state: PyTree
  seed: Array  # uint32; every key is a fold of it, the step and the image


def fold_in(keys: Array, data: int | Array) -> Array:
  """Folds a number into each of a batch of keys.

  Args:
    keys: [B] random keys.
    data: an integer >= 0, the same for all keys.

  Returns:
    [B] random keys.
  """
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def image_keys(key: Array, index: Array) -> Array:
  """Derives one key per image.

  The key depends on the image's index in the global batch, not on the device
  that holds it, so that the noise does not depend on the number of devices.

  Args:
    key: the key of this step.
    index: [B] int32, index of each image in the global batch.

  Returns:
    [B] random keys.
  """
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(
    index.astype(jnp.uint32)
  )


def gather(x: Array) -> Array:
  """Concatenates the rows of all devices, in the order of the global batch.

  Gradients flow back to the devices that the rows came from.

  Args:
    x: [B, ...] on each device.

  Returns:
    [devices * B, ...], the same on every device.
  """
  return jax.lax.all_gather(x, AXIS, tiled=True)
