"""Input gradient adversarial matching (IGAM).

What it Thinks is Important is Important: Robustness Transfers through Input
Gradients. Terms, layers and numbers are those of the official code.

Quirks of the official code: D takes one step to five of the classifier, which
is not offered (D moves in each); the squared distance is summed over the batch
and over pixels in 0 to 255, here averaged over images with pixels in [0, 1], so
that its gamma=10 at batch 32 is 10 * 32 / 255^2; the teacher normalizes by the
batch, here by its running averages. D's BatchNorm is replaced by a
normalization of each image, which needs no averages.
"""

from functools import partial
from typing import cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Batch, Context, LossOutput, Method
from jax_robust_kd.losses import cross_entropy
from jax_robust_kd.methods.input_gradient import input_gradient


def igam(
  beta: float = 2.0,
  gamma: float = 10.0,
  begin: float = 0.0,
  layers: int = 5,
  channels: int = 16,
) -> Method:
  """Builds IGAM: CE(S(x), y) - beta L_D + gamma ||grad S_y - grad T_y||^2.

  S_y is the probability of the label and both gradients are by the image. x
  carries uniform noise: the start of the config's attack, with
  `train_attack.init='uniform'`. A discriminator D minimizes L_D, its
  cross-entropy on whose gradient it sees, while the student maximizes it. Here
  one optimizer trains both by reversing D's gradient on its way to the student,
  so that the logged loss holds + L_D.

  Args:
    beta: weight of fooling the discriminator, >= 0.
    gamma: weight of the squared distance, >= 0; pixels are in [0, 1].
    begin: share of the training without any matching, in [0, 1].
    layers: convolutions of the discriminator, >= 1.
    channels: of the first of them, >= 1; doubled by each further one.

  Returns:
    The method, with one robust teacher and extra weights.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.igam(begin=0.875, layers=3).teachers
    ('robust',)

  References:
    Chan et al., CVPR 2020, arXiv 1912.05699. Loss: confirmed by the official
    code.
  """
  discriminator = _Discriminator(layers, channels)

  def loss(ctx, batch, adv):
    out = ctx.student(adv)
    hard = jnp.mean(cross_entropy(out.logits, batch.target))
    zeros = jnp.zeros_like(hard), jnp.zeros_like(hard)
    loss_d, distance = jax.lax.cond(
      ctx.progress >= begin,
      lambda: _match(discriminator, beta, ctx, batch, adv),
      lambda: zeros,
    )
    value = hard + loss_d + gamma * distance
    metrics = {'ce': hard, 'discriminator': loss_d, 'gradient_square': distance}
    return LossOutput(value, out.batch_stats, metrics)

  return Method(loss, _add_noise, partial(_init_heads, discriminator))


def _add_noise(rng: Array, ctx: Context, batch: Batch, maximize) -> Array:
  """Where the attack of the config starts: a constant is nowhere ascended."""
  del ctx
  return maximize(rng, lambda x: jnp.zeros(len(x)), batch.image).adv


def _match(
  discriminator: nn.Module, beta: float, ctx: Context, batch: Batch, adv: Array
) -> tuple[Array, Array]:
  """Returns L_D, and the squared distance of the gradients."""

  def right(logits):
    return jnp.sum(batch.target * jax.nn.softmax(logits), axis=-1)

  def score(gradient):
    return cast(Array, discriminator.apply({'params': ctx.heads}, gradient))

  student, _ = input_gradient(ctx.student, adv, right)
  teacher, _ = input_gradient(ctx.teacher, adv, right)
  fooled = jax.nn.softplus(score(_reverse(student, beta)))
  loss_d = jnp.mean(fooled + jax.nn.softplus(-score(teacher))) / 2
  square = jnp.sum(jnp.square(student - teacher), axis=(1, 2, 3))
  return loss_d, jnp.mean(square)


def _init_heads(discriminator: nn.Module, rng: Array, student, teacher):
  del student, teacher
  draw = jax.jit(discriminator.init)  # a compile, instead of one a weight
  return draw(rng, jnp.zeros((1, 32, 32, 3)))['params']


def _reverse(x: Array, factor: float) -> Array:
  """x itself, with gradient -factor (Ganin and Lempitsky 2015)."""
  fixed = jax.lax.stop_gradient(x)
  return fixed - factor * (x - fixed)


class _Discriminator(nn.Module):
  """Scores input gradients: above 0, it takes them for the teacher's.

  Attributes:
    layers: 4x4 convolutions of stride 2.
    channels: of the first; doubled by each further one.
  """

  layers: int
  channels: int

  @nn.compact
  def __call__(self, gradient: Array) -> Array:
    # Grey as well as coloured images: the weights are drawn before any is seen.
    x = jnp.broadcast_to(gradient, (*gradient.shape[:-1], 3))
    x -= jnp.mean(x, axis=(1, 2, 3), keepdims=True)
    square = jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True)
    x *= jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    for i in range(self.layers):
      x = nn.Conv(self.channels * 2**i, (4, 4), 2, use_bias=False)(x)
      x = nn.GroupNorm(1, use_fast_variance=False)(x)
      x = nn.leaky_relu(x, 0.1)
    return nn.Dense(1)(jnp.mean(x, axis=(1, 2)))[:, 0]
