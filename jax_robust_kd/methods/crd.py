"""Contrastive representation distillation (CRD).

After the official code: a bank for each network holds features of every
training image, noise at first, moved when the image is seen; Z, one for each
bank, is set by the first batch and stays, for good or bad.

Negatives are rows of other classes by the labels seen so far; a row not seen
yet still holds noise and counts as another class. Ours: they are drawn with
replacement (the official code draws without, where they suffice), and `extra`
images, which have no row, take no part. The label is argmax(target).
"""

from functools import partial

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Method, Output, gather
from jax_robust_kd.methods.features import (
  ON,
  distill,
  init_projections,
  project,
  unit,
)
from jax_robust_kd.methods.options import choose

EPS = 1e-7  # of the official code, in its ratios


def crd(
  beta: float = 0.8,
  gamma: float = 1.0,
  alpha: float = 0.0,
  temperature: float = 4.0,
  tau: float = 0.07,
  negatives: int = 16384,
  momentum: float = 0.5,
  feature_dim: int = 128,
  on: str = 'clean',
) -> Method:
  """Builds CRD, which contrasts features with those of other classes.

  The loss is `gamma CE + alpha t^2 KL_t + beta (L_S + L_T)`. L is `crd_loss`,
  of the student's features against past ones of the teacher, and the reverse,
  which trains the teacher's projection alone, since banks are constants.

  Args:
    beta: weight of the contrastive terms, >= 0.
    gamma: weight of the labels, >= 0.
    alpha: weight of the teacher's logits, >= 0.
    temperature: t, > 0; softens both networks' logits.
    tau: temperature of the contrastive terms, > 0.
    negatives: N per image, >= 1; at most as many as there are rows.
    momentum: share of the old features when a row of a bank moves, in [0, 1].
    feature_dim: numbers that features are projected to, >= 1, then to length 1.
    on: what both networks see, 'clean' as in the paper, or 'adv': images that
      maximize CE(S(x'), y).

  Returns:
    The method, with one robust teacher, extra weights and memory.

  Raises:
    UserError: an unknown `on`.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.crd(negatives=64).teachers
    ('robust',)

  References:
    Tian, Krishnan and Isola, ICLR 2020, arXiv 1910.10699. Loss: confirmed by
    the official code.
  """

  def loss(ctx, batch, adv):
    student, teacher = ctx.student(adv), ctx.teacher(adv)
    live = {
      'student': project(ctx.heads['student'], student),
      'teacher': project(ctx.heads['teacher'], teacher),
      'label': jnp.argmax(batch.target, axis=-1).astype(jnp.int32),
    }
    term, z = contrast(ctx.rng, ctx.memory, batch.row, live, tau, negatives)
    out = distill(
      batch, student, teacher, term, gamma=gamma, alpha=alpha, beta=beta,
      temperature=temperature,
    )  # fmt: skip
    memory = remember(ctx.memory, batch.row, live, z, momentum)
    return out._replace(memory=memory)

  return Method(
    loss,
    choose('on', on, ON),
    partial(init_projections, size=feature_dim),
    init_memory=partial(init_banks, size=feature_dim),
  )


def init_banks(
  rng: Array, student: Output, teacher: Output, num_rows: int, size: int
) -> dict[str, Array]:
  """Draws a row of about length 1 for each image, of no class yet."""
  del student, teacher
  side = (3 / size) ** 0.5
  noise = jax.random.uniform(
    rng, (2, num_rows, size), minval=-side, maxval=side
  )
  return {
    'student': noise[0],
    'teacher': noise[1],
    'label': jnp.full(num_rows, -1, jnp.int32),
    'z': jnp.zeros(2),  # not set yet
  }


def contrast(
  rng: Array,
  bank: dict[str, Array],
  row: Array,
  live: dict[str, Array],
  tau: float,
  negatives: int,
) -> tuple[Array, Array]:
  """Sums both directions of `crd_loss`, over the images that have a row.

  Args:
    rng: [B] keys.
    bank: 'student' and 'teacher' [M, d], 'label' [M], 'z' [2].
    row: [B] of the images.
    live: 'student' and 'teacher' [B, d], 'label' [B].
    tau: temperature.
    negatives: N.

  Returns:
    A scalar, and the Z [2] of the student's and of the teacher's term.
  """
  number = len(bank['label'])
  drawn = draw(rng, bank['label'], live['label'], min(negatives, number))
  rows = jnp.concatenate([row[:, None], drawn], axis=1)
  pairs = [
    (live['student'], bank['teacher']),
    (live['teacher'], bank['student']),
  ]
  first = jnp.stack([first_z(*pair, rows, tau) for pair in pairs])
  first = jnp.mean(gather(first[None]), axis=0)
  z = jnp.where(bank['z'] > 0, bank['z'], first)
  each = [crd_loss(*pairs[i], rows, z[i], tau) for i in (0, 1)]
  known = (row < number).astype(z.dtype)
  share = jnp.maximum(jnp.mean(gather(known)), 1e-12)
  return jnp.mean(known * (each[0] + each[1])) / share, z


def draw(rng: Array, known: Array, label: Array, number: int) -> Array:
  """Draws rows of other classes, evenly and with replacement.

  Args:
    rng: [B] keys.
    known: [M] labels of the rows, -1 where unknown.
    label: [B] the classes to avoid.
    number: N, how many for each image.

  Returns:
    [B, N] int32 rows.
  """
  order = jnp.argsort(known)
  # Rows of a class are adjacent: the index skips those of the label.
  first = jnp.searchsorted(known[order], label, side='left')
  count = jnp.searchsorted(known[order], label, side='right') - first

  def draw_one(key, first, count):
    index = jax.random.randint(key, (number,), 0, len(known) - count)
    return order[jnp.where(index < first, index, index + count)]

  return jax.vmap(draw_one)(rng, first, count)


def scores(live: Array, bank: Array, rows: Array, tau: float) -> Array:
  """Returns live . bank[row] / tau, [B, 1 + N], without copying the rows."""
  return jnp.take_along_axis(live @ bank.T / tau, rows, axis=1, mode='clip')


def first_z(live: Array, bank: Array, rows: Array, tau: float) -> Array:
  """Z by a batch: the number of rows times the mean of exp(score)."""
  mean = jnp.mean(jnp.exp(scores(live, bank, rows, tau)))
  return jax.lax.stop_gradient(len(bank) * mean)


def crd_loss(
  live: Array, bank: Array, rows: Array, z: Array, tau: float
) -> Array:
  """Noise-contrastive loss of each image against a bank, Eq. 18.

  With u = exp(live . bank[row] / tau) / z and c = N / M it is
  -log u / (u + c + eps) of the own row, and -log c / (u + c + eps) summed over
  the negatives.

  Args:
    live: [B, d] features of length 1, of one network.
    bank: [M, d] past features of the other.
    rows: [B, 1 + N] rows of the bank, the image's own first.
    z: scalar.
    tau: temperature.

  Returns:
    [B] nats.
  """
  c = (rows.shape[1] - 1) / len(bank)
  log_u = scores(live, bank, rows, tau) - jnp.log(z)
  u = jnp.exp(log_u)
  positive = log_u[:, 0] - jnp.log(u[:, 0] + c + EPS)
  return jnp.sum(jnp.log1p((u[:, 1:] + EPS) / c), axis=1) - positive


def remember(
  bank: dict[str, Array],
  row: Array,
  new: dict[str, Array],
  z: Array,
  momentum: float,
) -> dict[str, Array]:
  """Moves the rows of a batch; rows that do not exist are dropped.

  Args:
    bank: 'student' and 'teacher' [M, d], 'label' [M], 'z'.
    row: [B] of this device.
    new: the same of this batch, [B, d] and [B].
    z: to keep.
    momentum: share of the old features.
  """
  row, new = jax.tree.map(gather, jax.lax.stop_gradient((row, new)))

  def moved(name):
    old = bank[name].at[row].get(mode='clip')
    mixed = unit(momentum * old + (1 - momentum) * new[name])
    return bank[name].at[row].set(mixed, mode='drop')

  return {
    'student': moved('student'),
    'teacher': moved('teacher'),
    'label': bank['label'].at[row].set(new['label'], mode='drop'),
    'z': z,
  }
