"""Inner problems that two or more methods share."""

from jax_robust_kd.core import Array, Batch, Context, Maximize
from jax_robust_kd.losses import cross_entropy, kl_divergence


def cross_entropy_label(
  rng: Array, ctx: Context, batch: Batch, maximize: Maximize
) -> Array:
  """Maximizes CE(S(x'), y), the inner problem of PGD adversarial training.

  Returns:
    [B, H, W, C] adversarial images.
  """

  def loss_fn(image):
    return cross_entropy(ctx.student(image).logits, batch.target)

  return maximize(rng, loss_fn, batch.image).adv


def kl_to_teacher_adv(
  rng: Array, ctx: Context, batch: Batch, maximize: Maximize
) -> Array:
  """Maximizes KL(T(x') || S(x')); the gradient flows through both networks.

  Returns:
    [B, H, W, C] the images on which teacher and student differ most.
  """

  def loss_fn(image):
    teacher = ctx.teacher(image).logits
    return kl_divergence(ctx.student(image).logits, teacher)

  return maximize(rng, loss_fn, batch.image).adv


def kl_to_teacher_clean(
  rng: Array, ctx: Context, batch: Batch, maximize: Maximize
) -> Array:
  """Maximizes KL(T(x) || S(x')), the teacher's clean output as soft label.

  Returns:
    [B, H, W, C] adversarial images.
  """
  target = ctx.teacher(batch.image).logits

  def loss_fn(image):
    return kl_divergence(ctx.student(image).logits, target)

  return maximize(rng, loss_fn, batch.image).adv
