"""Sample-wise adaptive adversarial distillation (SAAD).

The official code decays weights by 2e-4, the paper by 5e-4, as
`configs/saad.py`. Its scripts of RSLAD, AdaAD and IGDM, beside it, exchange
radius and step (2/255 and 8/255); its own has them right.
"""

import functools

import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, LossOutput, Method, gather
from jax_robust_kd.losses import kl_divergence
from jax_robust_kd.methods.options import choose
from jax_robust_kd.methods.outer_losses import igdm_term

_TINY = 1e-8  # keeps a ratio finite when all entropies are equal


def saad(
  alpha: float = 1.0,
  beta: float = 0.0,
  entropy_scale: float = 5.0,
  order: float = 1.0,
  correction: float = 1.0,
  corrected: str = 'label',
) -> Method:
  """Builds SAAD: AdaAD and IGDM, weighted by the teacher's entropy at x'.

  With p the share of the training done the loss is

    mean_i w_i [KL(T(x'_i) || S(x'_i)) + alpha p IGDM_i]
           + beta (1 - w_i / max w) KL(T(x_i) || S(x_i))
    w_i = entropy_scale (H(T(x'_i)) - min_j H(T(x'_j))).

  Minimum and maximum are over the batch of all devices. In the paper w is H;
  the shift and the scale are the official code's. x' maximizes KL(T^(x') ||
  S(x')) with T^(x') = T(x) + correction J_T(x) (x' - x). The running averages
  see x', x - d, then x if beta is not 0; those of the official code see x
  always.

  Args:
    alpha: final weight of the IGDM term, >= 0; the authors' is 1 on CIFAR-10
      and 10 on CIFAR-100.
    beta: weight of the clean term, >= 0; the authors' script has 0.
    entropy_scale: factor of the weights, > 0.
    order: order of the Renyi entropy, > 0; 1 is Shannon's.
    correction: factor of the linear term; 0 is RSLAD's inner problem.
    corrected: 'label', the logit of argmax(target) alone, as the official code,
      or 'all', which passes the linearised teacher twice at each step.

  Returns:
    The method, with one robust teacher.

  Raises:
    UserError: an unknown `corrected`.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.saad(alpha=1.0, corrected='all').teachers
    ('robust',)

  References:
    Lee and Chung, Sample-wise Adaptive Weighting for Transfer Consistency in
    Adversarial Distillation, TMLR 2026, arXiv 2512.10275. Confirmed by the
    paper.
  """
  linearise = choose('corrected', corrected, LINEARISED)
  perturb = functools.partial(_perturb, linearise, correction)

  def loss(ctx, batch, adv):
    on_adv = ctx.student(adv)
    target = ctx.teacher(adv).logits
    robust = kl_divergence(on_adv.logits, target)
    gradient, batch_stats = igdm_term(ctx, batch, adv, on_adv)
    h = entropy(target, order)
    weight = entropy_scale * (h - gather(h).min())
    value = weight * (robust + alpha * ctx.progress * gradient)
    metrics = {'kl_robust': robust, 'kl_gradient': gradient, 'weight': weight}
    if beta:
      on_clean = ctx.student(batch.image, batch_stats=batch_stats)
      batch_stats = on_clean.batch_stats
      clean = kl_divergence(on_clean.logits, ctx.teacher(batch.image).logits)
      share = weight / jnp.maximum(gather(weight).max(), _TINY)
      value += beta * (1 - share) * clean
      metrics['kl_clean'] = clean
    metrics = jax.tree.map(jnp.mean, metrics)
    return LossOutput(jnp.mean(value), batch_stats, metrics)

  return Method(loss, perturb)


def entropy(logits: Array, order: float) -> Array:
  """Renyi entropy of softmax(logits), [B] nats; Shannon's at order 1."""
  log_p = jax.nn.log_softmax(logits)
  if order == 1.0:
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  return jax.nn.logsumexp(order * log_p, axis=-1) / (1 - order)


def _perturb(linearise, correction, rng, ctx, batch, maximize):
  """Maximizes KL(T^(x') || S(x')), T^ the linearised teacher."""
  right = jax.nn.one_hot(batch.target.argmax(-1), batch.target.shape[-1])
  logits, change = linearise(ctx.teacher, batch.image, right)

  def loss_fn(image):
    target = logits + correction * change(image - batch.image)
    return kl_divergence(ctx.student(image).logits, target)

  return maximize(rng, loss_fn, batch.image).adv


def label_logit(teacher, image: Array, right: Array):
  """As `every_logit`, of the label's logit alone; the others stay.

  Args:
    teacher: image -> Output.
    image: [B, H, W, C] where it is linearised.
    right: [B, K] one-hot hard labels.
  """
  logits, pull = jax.vjp(lambda x: teacher(x).logits, image)
  (slope,) = pull(right)

  def change(d):
    return right * jnp.sum(slope * d, axis=(1, 2, 3))[:, None]

  return logits, change


def every_logit(teacher, image: Array, right: Array):
  """Returns the logits [B, K] at `image`, and d -> their change J_T d.

  The transpose of the transpose: our convolutions know no forward mode.
  """
  del right
  logits, pull = jax.vjp(lambda x: teacher(x).logits, image)
  _, push = jax.vjp(lambda c: pull(c)[0], jnp.zeros_like(logits))
  return logits, lambda d: push(d)[0]


LINEARISED = {'label': label_logit, 'all': every_logit}
