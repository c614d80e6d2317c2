"""Mixup and activated channel maps (MixACM). RECONSTRUCTED but its idea.

The abstract, figure 1 and a part of the supplement confirm: the student sees no
attack; both networks see the same mixed images; a function turns each block's
map of C x H x W into C numbers, which a transformation brings to the teacher's
C where the student has others; the two vectors are compared in every block (the
first is the output of the first layer); added to it are KL to the teacher's
soft labels and the mixup loss. Exponent, normalization, distance and weights
are RECONSTRUCTED, each a keyword with the likeliest value.

Mixing is the augmentation's: one lambda ~ Beta(1, 1) for the global batch, as
in mixup's reference code, and images 2k and 2k + 1 of the shuffled batch as
partners. CE with the mixed target is lambda CE(y) + (1 - lambda) CE(y').

Each term is switched off by weight 0, mixing by data.augment.mixup_alpha=0;
without labels and KL nothing trains the classifier. A block's map is what the
model returns for it: activated in ResNets, but before the next normalization in
pre-activation networks, where |.| alone makes it positive.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, LossOutput, Method, Output, UserError
from jax_robust_kd.losses import cross_entropy, kl_divergence
from jax_robust_kd.methods.features import unit
from jax_robust_kd.methods.options import choose


def _length(x: Array) -> Array:
  """Norm over the last axis, whose gradient is 0 where x is 0."""
  square = jnp.sum(x**2, axis=-1)
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


POWERS = {'1': jnp.abs, '2': jnp.square}
DISTANCES = {
  'norm': _length,
  'squared': lambda x: jnp.sum(x**2, axis=-1),
}


def _names(blocks: tuple[str, ...], student: dict, teacher: dict) -> list[str]:
  """Returns the blocks to compare; both networks must have all of them."""
  names = [sorted(set(f) - {'pooled'}) for f in (student, teacher)]
  both = [name for name in names[0] if name in names[1]]
  if not set(blocks or sum(names, [])) <= set(both):
    raise UserError(
      f"method.blocks={tuple(blocks)}: the student's blocks are "
      f"{', '.join(names[0])} and the teacher's {', '.join(names[1])}; set it "
      f'to some of those that both have: {tuple(both)}'
    )
  return sorted(blocks or both)


def _init_heads(
  blocks: tuple[str, ...], rng: Array, student: Output, teacher: Output
) -> dict[str, Array]:
  """Draws [C_S, C_T] for each block where the numbers of channels differ."""
  names = _names(blocks, student.features, teacher.features)
  draw = jax.nn.initializers.lecun_normal()
  heads = {}
  for name, key in zip(names, jax.random.split(rng, len(names)), strict=True):
    shape = [out.features[name].shape[-1] for out in (student, teacher)]
    if shape[0] != shape[1]:
      heads[name] = draw(key, shape)
  return heads


def _channels(power: Callable, feature: Array) -> Array:
  """Returns the channel map [B, C] of a feature [B, h, w, C]."""
  return jnp.mean(power(feature.astype(jnp.float32)), axis=(1, 2))


def mixacm(
  alpha_acm: float = 5.0,
  alpha_kl: float = 1.0,
  alpha_ce: float = 1.0,
  temperature: float = 4.0,
  p: int = 1,
  distance: str = 'norm',
  blocks: tuple[str, ...] = (),
) -> Method:
  """Builds MixACM: a_ce CE(S, y) + a_kl t^2 KL_t(T || S) + a_acm ACM.

  All on mixed images x. ACM sums over blocks the distance between the unit
  vectors of g(S) W and g(T), where g = mean over pixels of |A_c|^p. W is
  trained, and is left out where both have the same number of channels.

  Args:
    alpha_acm: weight of ACM, >= 0, from 1 to 100.
    alpha_kl: weight of the soft labels, >= 0.
    alpha_ce: weight of the labels, >= 0.
    temperature: t, > 0; softens both outputs.
    p: exponent of the channel maps, 1 or 2.
    distance: 'norm' of the difference of the unit vectors, or 'squared'.
    blocks: names of the blocks to compare, in both networks the same; () is
      all, and needs equal numbers of stages.

  Returns:
    The method, with one robust teacher and extra weights.

  Raises:
    UserError: an unknown `p` or `distance`, or, when the weights are drawn, a
      block that one network lacks.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.mixacm(blocks=('stage1', 'stage2')).perturb.__name__
    'no_attack'

  References:
    Awais et al., NeurIPS 2021, arXiv 2111.05073; reconstructed.
  """
  power = choose('p', str(p), POWERS)
  measure = choose('distance', distance, DISTANCES)

  def difference(name, heads, student, teacher):
    maps = [_channels(power, f[name]) for f in (student, teacher)]
    maps[0] = maps[0] @ heads[name] if name in heads else maps[0]
    return measure(unit(maps[0]) - unit(maps[1]))

  def loss(ctx, batch, adv):
    del adv
    teacher, out = ctx.teacher(batch.image), ctx.student(batch.image)
    features = out.features, teacher.features
    names = _names(blocks, *features)
    acm = jnp.mean(sum(difference(n, ctx.heads, *features) for n in names))
    kl = temperature**2 * jnp.mean(
      kl_divergence(out.logits, teacher.logits, temperature)
    )
    ce = jnp.mean(cross_entropy(out.logits, batch.target))
    value = alpha_acm * acm + alpha_kl * kl + alpha_ce * ce
    metrics = {'acm': acm, 'kl': kl, 'ce': ce}
    return LossOutput(value, out.batch_stats, metrics)

  return Method(loss, init_heads=partial(_init_heads, blocks))
