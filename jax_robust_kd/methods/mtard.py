"""Multi-teacher adversarial distillation (MTARD)."""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import AXIS, CLEAN, ROBUST, LossOutput, Method
from jax_robust_kd.losses import kl_divergence
from jax_robust_kd.methods.inner_problems import cross_entropy_label

_TINY = 1e-12  # keeps ratios finite when a loss is exactly 0


def mtard(
  weight_lr: float = 0.025,
  milestones: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300),
  decay: float = 0.1,
  scale: float = 1.0,
) -> Method:
  """Builds MTARD: (1 - w) KL(T(x') || S(x')) + w KL(C(x) || S(x)).

  The robust teacher T answers on x', which maximizes CE(S(x'), y), the clean
  teacher C on x. From w = 1/2 every step moves it, before it is used, towards
  the clean term's share of the relative losses r = loss / loss of the first
  step:

    w <- w - weight_lr (w - r_clean / (r_robust + r_clean))

  No gradient flows through w; the losses in it are averaged over devices. The
  running averages see x', then x. The official log(p + 1e-5) of the teachers,
  which moves w by less than 1e-5, is left out.

  Args:
    weight_lr: learning rate of w, in [0, 1].
    milestones: shares of the training at which it decays, each in [0, 1].
    decay: factor at each milestone, in [0, 1].
    scale: factor of the whole loss, > 0. The official code averages over the 10
      classes of CIFAR-10, and times 10 over the 100 of CIFAR-100: 0.1 for both.

  Returns:
    The method, with a robust and a clean teacher, and memory.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.mtard(weight_lr=0.025).teachers
    ('robust', 'clean')

  References:
    Zhao et al., ECCV 2022. Loss: confirmed by the official code.
  """

  def loss(ctx, batch, adv):
    on_adv = ctx.student(adv)
    on_clean = ctx.student(batch.image, batch_stats=on_adv.batch_stats)
    targets = ctx.teacher(adv).logits, ctx.teachers[CLEAN](batch.image).logits
    robust = jnp.mean(kl_divergence(on_adv.logits, targets[0]))
    clean = jnp.mean(kl_divergence(on_clean.logits, targets[1]))
    losses = jax.lax.stop_gradient(jnp.stack([robust, clean]))
    losses = jax.lax.pmean(losses, AXIS)
    passed = jnp.sum(ctx.progress >= jnp.asarray(milestones))
    memory = _move(ctx.memory, losses, weight_lr * decay**passed)
    weight = memory['clean_weight']
    value = scale * ((1 - weight) * robust + weight * clean)
    metrics = {'kl_robust': robust, 'kl_clean': clean, 'clean_weight': weight}
    return LossOutput(value, on_clean.batch_stats, metrics, memory)

  return Method(
    loss,
    cross_entropy_label,
    teachers=(ROBUST, CLEAN),
    init_memory=_init_memory,
  )


def _init_memory(rng, student, teacher, num_rows):
  del rng, student, teacher, num_rows
  return {
    'clean_weight': jnp.asarray(0.5, jnp.float32),
    'first': jnp.zeros(2, jnp.float32),  # robust, clean; 0: not yet known
  }


def _move(memory, losses, rate):
  """Moves the weight towards the clean loss's share; `losses` are [2]."""
  first = jnp.where(memory['first'] > 0, memory['first'], losses)
  relative = losses / jnp.maximum(first, _TINY)
  share = relative[1] / jnp.maximum(relative.sum(), _TINY)
  weight = memory['clean_weight']
  return {'clean_weight': weight - rate * (weight - share), 'first': first}
