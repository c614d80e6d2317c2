"""Distillation along adversarial paths (DARWIN). RECONSTRUCTED but its idea.

The abstract confirms: the points on the way of gradient ascent take part in the
alignment of student and teacher, beside the clean and the last adversarial
image; they are weighted adaptively, since they range from benign to noisy; and
there are two branches, an untargeted path and a targeted one. No full text or
code could be had, and no published number is known here. Weights, coefficients
and targets are RECONSTRUCTED, the default weight from later papers of the first
author.

A step with m points per path makes 2m + 1 passes of the student with gradient
(forward twice, see `_pass_all`), as many passes of the teacher, and 2m steps of
attack. The running averages see the untargeted path from first to last, the
targeted path, then x, which therefore weighs most in them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_robust_kd.core import (
  AXIS,
  Array,
  Batch,
  Context,
  LossOutput,
  Method,
  PyTree,
  UserError,
  fold_in,
)
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.options import choose

_TINY = 1e-12  # keeps a ratio finite where all weights are 0


class Points(NamedTuple):
  """What is known about the N kept points of a path, for its weights."""

  clean: Array  # [B, K] the student's probabilities at x
  student: Array  # [N, B, K] and at the points
  teacher: Array  # [N, B, K] the teacher's, of what it sees
  kl: Array  # [N, B] of the two
  label: Array  # [B, K] one-hot
  aim: Array  # [B, K] minus the label, or plus the class that is aimed at
  tau: float


def _drop(points: Points) -> Array:
  """What the true class lost or the target won, over the batch's maximum."""
  change = jnp.sum((points.student - points.clean) * points.aim, axis=-1)
  change = jnp.maximum(change, 0.0)
  most = jax.lax.pmax(jnp.max(change, axis=1, keepdims=True), AXIS)
  return change / jnp.maximum(most, _TINY)


def _boundary(points: Points) -> Array:
  """exp(-|p_y - max_{c != y} p_c| / tau): low for benign and for far points."""
  right = jnp.sum(points.student * points.label, axis=-1)
  wrong = jnp.max(points.student * (1 - points.label), axis=-1)
  return jnp.exp(-jnp.abs(right - wrong) / points.tau)


def _reliability(points: Points) -> Array:
  """`_drop` times T_y^0.1, the trust of IAD (Zhu et al. 2022)."""
  trust = jnp.sum(points.teacher * points.label, axis=-1)
  return _drop(points) * trust**0.1


WEIGHTS: dict[str, Callable[[Points], Array]] = {
  'drop': _drop,  # W-A
  'boundary': _boundary,  # W-B
  'disagreement': lambda p: jax.nn.softmax(p.kl / p.tau, axis=0),  # W-C
  'reliability': _reliability,  # W-D
  'uniform': lambda p: jnp.ones_like(p.kl),  # control
  'last': lambda p: jnp.zeros_like(p.kl).at[-1].set(1.0),  # control
}


def _any_other(ctx: Context, batch: Batch, label: Array) -> Array:
  classes = batch.target.shape[-1]
  draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, classes))
  return (label + draw(ctx.rng)) % classes


def _of_the_batch(ctx: Context, batch: Batch, label: Array) -> Array:
  differ = label[:, None] != label
  draw = jax.vmap(jax.random.categorical)
  drawn = draw(ctx.rng, jnp.where(differ, 0.0, -jnp.inf))
  alone = ~jnp.any(differ, axis=1)
  return jnp.where(alone, _any_other(ctx, batch, label), label[drawn])


def _runner_up(ctx: Context, batch: Batch, label: Array) -> Array:
  logits = ctx.teacher(batch.image).logits
  right = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
  return jnp.where(right, -jnp.inf, logits).argmax(axis=-1)


TARGETS: dict[str, Callable[[Context, Batch, Array], Array]] = {
  'uniform': _any_other,  # any class but the true one, drawn at each step
  'batch': _of_the_batch,  # class of a random other image on the device
  'runner_up': _runner_up,  # the teacher's best wrong class at x
}


def _teach_on_points(ctx: Context, points: Array) -> Array:
  return jax.lax.map(lambda image: ctx.teacher(image).logits, points)


def _teach_on_clean(ctx: Context, points: Array) -> Array:
  logits = ctx.teacher(points[-1]).logits
  return jnp.broadcast_to(logits, (len(points), *logits.shape))


TEACHER_SEES = {'adv': _teach_on_points, 'clean': _teach_on_clean}


def _keep(path: Array, number: int) -> Array:
  """Returns `number` points of a path, evenly spaced up to the last."""
  total = len(path)
  number = min(number or total, total)
  indices = [(i * total - 1) // number for i in range(1, number + 1)]
  return path[jnp.array(indices)]


def _pass_all(student: Callable, points: Array) -> tuple[Array, PyTree]:
  """Passes images [N, B, ...] one after the other, in one loop.

  Activations are computed anew for the gradient, so that memory does not grow
  with N, nor does compile time: 8.4, 9.2 and 8.5 s of CPU for the step with 2,
  6 and 20 points per path (6.2 s for RSLAD's; ResNet-8 on digits, JAX 0.10.2,
  `JAX_DISABLE_MOST_OPTIMIZATIONS`), and 1.81, 1.85 and 1.98 MB.

  Returns:
    logits [N, B, K] and the running averages, which have seen all in order:
    with N passes that move them by 0.1 each, 0.9^N of the past is left.
  """

  @partial(jax.checkpoint, prevent_cse=False)
  def visit(batch_stats, image):
    out = student(image, batch_stats=batch_stats)
    return out.batch_stats, out.logits

  first = student(points[0])
  stats, logits = jax.lax.scan(visit, first.batch_stats, points[1:])
  return jnp.concatenate([first.logits[None], logits]), stats


def _ask_both(
  ctx: Context, teach: Callable, paths: dict[str, Array]
) -> tuple[dict[str, tuple[Array, Array]], PyTree]:
  """Returns the logits of student and teacher by path, and `batch_stats`."""
  points = jnp.concatenate(list(paths.values()))
  student, stats = _pass_all(ctx.student, points)
  teacher = teach(ctx, points)
  edges = [len(path) for path in paths.values()]
  edges = [sum(edges[:i]) for i in range(1, len(edges))]
  parts = zip(jnp.split(student, edges), jnp.split(teacher, edges), strict=True)
  return dict(zip(paths, parts, strict=True)), stats


def _aims(aim_at: Callable, ctx: Context, batch: Batch) -> dict[str, Array]:
  """Returns [B, K] per branch: the weight of each log-probability to raise."""
  one_hot = partial(jax.nn.one_hot, num_classes=batch.target.shape[-1])
  label = batch.target.argmax(axis=-1)
  goal = one_hot(aim_at(ctx, batch, label))
  return {'untargeted': -one_hot(label), 'targeted': goal}


def _mean_divergence(weigh: Callable, points: Points) -> Array:
  """sum_k w_k KL_k / sum_k w_k, mean over images; no gradient in w."""
  w = weigh(jax.lax.stop_gradient(points))
  total = jnp.maximum(jnp.sum(w, axis=0), _TINY)
  return jnp.mean(jnp.sum(w * points.kl, axis=0) / total)


def darwin(
  weights: str = 'drop',
  a: float = 1 / 6,
  b: float = 0.5,
  target: str = 'uniform',
  teacher_sees: str = 'adv',
  num_points: int = 0,
  tau: float = 0.2,
) -> Method:
  """Builds DARWIN, which aligns both networks along two adversarial paths.

  The loss is `a KL(T(x) || S(x)) + (1 - a) [(1 - b) L_unt + b L_tar]`. Each L
  is the mean over images of sum_k w_k KL(T(x_k) || S(x_k)) / sum_k w_k over the
  points of a path. The untargeted path ascends CE(S, y), the targeted one
  descends CE(S, t), t != y; y is argmax(target).

  Args:
    weights: w_k, without gradient; a name in WEIGHTS.
    a: weight of the clean images, in [0, 1].
    b: share of the targeted branch, in [0, 1]; 0 or 1 makes one branch only.
    target: how t is chosen, a name in TARGETS.
    teacher_sees: 'adv', the point itself, or 'clean', x.
    num_points: points of each path, evenly spaced; 0: all
      train_attack.num_steps.
    tau: scale of 'boundary' (probability) and 'disagreement' (nats), > 0.

  Returns:
    The method, with one robust teacher.

  Raises:
    UserError: an unknown option or a negative `num_points`.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.darwin(weights='uniform', num_points=2).teachers
    ('robust',)

  References:
    Dong et al., CVPR 2024; reconstructed.
  """
  weigh = choose('weights', weights, WEIGHTS)
  aim_at = choose('target', target, TARGETS)
  teach = choose('teacher_sees', teacher_sees, TEACHER_SEES)
  if num_points < 0:
    raise UserError(f'method.num_points={num_points} is negative; 0 keeps all')
  shares = {'untargeted': 1 - b, 'targeted': b}
  shares = {name: share for name, share in shares.items() if share}

  def perturb(rng, ctx, batch, maximize):
    def path(index, aim):
      def loss_fn(image):  # of a negative target: away from it
        return -cross_entropy(ctx.student(image).logits, aim)

      ascent = maximize(fold_in(rng, index), loss_fn, batch.image)
      return _keep(ascent.path, num_points)

    aims = _aims(aim_at, ctx, batch)
    return {name: path(i, aims[name]) for i, name in enumerate(shares)}

  def loss(ctx, batch, adv):
    paths = {name: adv[name] for name in shares} | {'x': batch.image[None]}
    seen, stats = _ask_both(ctx, teach, paths)
    aims, clean = _aims(aim_at, ctx, batch), jax.nn.softmax(seen['x'][0][0])
    metrics = {'kl_clean': jnp.mean(kl_divergence(*seen['x']))}
    value = a * metrics['kl_clean']
    for name, share in shares.items():
      p, q = map(jax.nn.softmax, seen[name])
      kl = kl_divergence(*seen[name])
      points = Points(clean, p, q, kl, -aims['untargeted'], aims[name], tau)
      metrics[f'kl_{name}'] = _mean_divergence(weigh, points)
      value += (1 - a) * share * metrics[f'kl_{name}']
    return LossOutput(value, stats, metrics)

  return Method(loss, perturb)
