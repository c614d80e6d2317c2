"""Guided adversarial contrastive distillation (GACD). RECONSTRUCTED.

Only the abstract could be had. It confirms that features are distilled, by
contrastive learning tied to mutual information, with the teacher as the anchor,
and with samples reweighted against the teacher's errors. All else follows CRD
(arXiv 1910.10699) and the field; each open choice is a keyword.

t and s are the networks' pooled features, projected to length 1. The score of a
pair is t . s / tau; L sees that of t_i and s_i, and those of t_i with the
student's features of other classes on all devices. The running averages see the
student's images. The label is argmax(target). With classifier='none' the
network's own layer is never trained, so that chance chooses the best checkpoint
by accuracy: features are those of the last one.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jax_robust_kd.core import (
  Array,
  Batch,
  Context,
  LossOutput,
  Method,
  Output,
  gather,
  no_attack,
  no_memory,
)
from jax_robust_kd.losses import cross_entropy
from jax_robust_kd.methods.features import init_projections, project
from jax_robust_kd.methods.inner_problems import cross_entropy_label
from jax_robust_kd.methods.options import choose

NEVER = -1e9  # a score of exp 0


def fool_teacher(rng: Array, ctx: Context, batch: Batch, maximize) -> Array:
  """Maximizes CE(T(x'), y): images made against the teacher."""

  def loss_fn(image):
    return cross_entropy(ctx.teacher(image).logits, batch.target)

  return maximize(rng, loss_fn, batch.image).adv


VIEWS = {
  'V1': cross_entropy_label,  # both see x', made against the student
  'V2': cross_entropy_label,  # the teacher sees x, the student x'
  'V3': no_attack,  # both see x
  'V4': fool_teacher,  # both see x', made against the teacher
}


def nce(positive: Array, score: Array, other: Array) -> Array:
  """-log h(positive) - sum over negatives of log(1 - h(score)).

  h = e^score / (e^score + N m): N negatives of this anchor, and m the mean of
  e^score over all negatives of the batch, as a constant. CRD's h with
  P_n = 1 / M and Z = M m is the same; but its Z is the first batch's for good.

  Args:
    positive: [B] scores of the congruent pairs.
    score: [B, n] scores with all candidates.
    other: [B, n] which of them are negatives.

  Returns:
    [B] nats.
  """
  number = jnp.sum(other, axis=1)
  fixed = jax.lax.stop_gradient(jnp.where(other, score, NEVER))
  total = jax.nn.logsumexp(gather(jax.nn.logsumexp(fixed, axis=1)))
  mean = total - jnp.log(jnp.maximum(jnp.sum(gather(number)), 1))
  noise = jnp.log(jnp.maximum(number, 1)) + mean
  wrong = jax.nn.log_sigmoid(noise[:, None] - score)
  right = jax.nn.log_sigmoid(positive - noise)
  return -right - jnp.sum(jnp.where(other, wrong, 0.0), axis=1)


def infonce(positive: Array, score: Array, other: Array) -> Array:
  """-log of the positive's share among itself and the negatives; as `nce`."""
  scores = jnp.where(other, score, NEVER)
  scores = jnp.concatenate([positive[:, None], scores], axis=1)
  return jax.nn.logsumexp(scores, axis=1) - positive


LOSSES = {'nce': nce, 'infonce': infonce}


def probability(logits: Array, label: Array, power: float) -> Array:
  """p_T(y)^power, [B]."""
  column = jnp.take_along_axis(jax.nn.softmax(logits), label[:, None], axis=1)
  return column[:, 0] ** power


def correct(logits: Array, label: Array, power: float) -> Array:
  """1 where the teacher is right, 0 elsewhere, [B]."""
  del power
  return (jnp.argmax(logits, axis=-1) == label).astype(logits.dtype)


def one(logits: Array, label: Array, power: float) -> Array:
  """1, the control arm, [B]."""
  del label, power
  return jnp.ones_like(logits[:, 0])


WEIGHTS = {'probability': probability, 'correct': correct, 'one': one}

# Networks whose features are anchors, and where their candidates come from.
DIRECTIONS = {'teacher': ('teacher',), 'both': ('teacher', 'student')}
_OTHER = {'teacher': 'student', 'student': 'teacher'}


def gacd(
  views: str = 'V1',
  loss: str = 'nce',
  weight: str = 'probability',
  power: float = 1.0,
  negatives: str = 'batch',
  bank_size: int = 16384,
  direction: str = 'teacher',
  classifier: str = 'joint',
  tau: float = 0.07,
  beta: float = 0.8,
  feature_dim: int = 128,
) -> Method:
  """Builds GACD: CE(S(.), y) + beta mean_i w_i L(t_i, s_i, negatives of i).

  Args:
    views: what the networks see, a name in VIEWS.
    loss: L, 'nce' or 'infonce'.
    weight: w, a name in WEIGHTS, by what the teacher sees; 1 on average.
    power: exponent of the probability, >= 0.
    negatives: 'batch', or 'bank': features of past images besides, constant.
    bank_size: length of that queue, >= 1; at most the number of images.
    direction: 'teacher' is the anchor, or 'both' in turn, as CRD.
    classifier: 'joint', or 'none': the features alone, to fit a layer on.
    tau: temperature of the scores, > 0.
    beta: weight of the contrastive term, >= 0.
    feature_dim: numbers that features are projected to, >= 1.

  Returns:
    The method, with one robust teacher, extra weights and memory.

  Raises:
    UserError: an unknown option.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.gacd(views='V3').perturb.__name__
    'no_attack'

  References:
    Bai et al. 2020, arXiv 2009.09922; reconstructed.
  """
  choose('views', views, VIEWS)
  pair_loss = choose('loss', loss, LOSSES)
  weigh = choose('weight', weight, WEIGHTS)
  anchors = choose('direction', direction, DIRECTIONS)
  hard = choose('classifier', classifier, {'joint': 1.0, 'none': 0.0})
  bank = partial(init_queue, anchors=anchors, size=(bank_size, feature_dim))
  options = {'batch': no_memory, 'bank': bank}

  def outer(ctx, batch, adv):
    teacher = ctx.teacher(batch.image if views == 'V2' else adv)
    student = ctx.student(adv)
    each, label, memory = contrast(
      ctx, batch, student, teacher, anchors, pair_loss, tau
    )
    w = weigh(teacher.logits, label, power)
    w = w / jnp.maximum(jnp.mean(gather(w)), 1e-12)
    term = jnp.mean(w * each)
    ce = jnp.mean(cross_entropy(student.logits, batch.target))
    metrics, value = {'ce': ce, 'contrast': term}, hard * ce + beta * term
    return LossOutput(value, student.batch_stats, metrics, memory)

  return Method(
    outer,
    VIEWS[views],
    partial(init_projections, size=feature_dim),
    init_memory=choose('negatives', negatives, options),
  )


def contrast(
  ctx: Context,
  batch: Batch,
  student: Output,
  teacher: Output,
  anchors: tuple[str, ...],
  pair_loss: Callable,
  tau: float,
) -> tuple[Array, Array, dict[str, Array]]:
  """Returns the loss of each image's pair, labels, and the moved queue.

  The candidates are live: against a bank alone, as in CRD's term of the same
  direction, nothing but the teacher's projection would learn.
  """
  label = jnp.argmax(batch.target, axis=-1).astype(jnp.int32)
  projected = {
    'student': project(ctx.heads['student'], student),
    'teacher': project(ctx.heads['teacher'], teacher),
  }
  live = jax.tree.map(gather, {'label': label, **projected})
  joined = {
    k: jnp.concatenate([live[k], past]) for k, past in ctx.memory.items()
  }
  memory = {k: joined[k][: len(past)] for k, past in ctx.memory.items()}
  candidates = {**live, **joined}
  known = candidates['label'] >= 0
  other = known & (candidates['label'] != label[:, None])
  positive = jnp.sum(projected['teacher'] * projected['student'], axis=-1) / tau
  each = jnp.zeros_like(positive)
  for anchor in anchors:
    score = projected[anchor] @ candidates[_OTHER[anchor]].T / tau
    each += pair_loss(positive, score, other)
  return each, label, jax.lax.stop_gradient(memory)


def init_queue(
  rng: Array,
  student: Output,
  teacher: Output,
  num_rows: int,
  *,
  anchors: tuple[str, ...],
  size: tuple[int, int],
) -> dict[str, Array]:
  """Returns an empty queue, of label -1; `size` is its length and width."""
  del rng, student, teacher
  size = min(size[0], num_rows), size[1]
  empty = {'label': jnp.full(size[0], -1, jnp.int32)}
  return {**empty, **{_OTHER[a]: jnp.zeros(size) for a in anchors}}
