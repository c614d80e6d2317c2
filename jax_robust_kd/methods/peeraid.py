"""Adversarial distillation from a peer (PeerAiD).

Improving Adversarial Distillation from a Specialized Peer Tutor. Equations and
numbers as in the official code (mlvlab/PeerAiD).

Quirks of the official code: divergences are averaged over classes too, so the
weights in `configs/peeraid.py` are divided by K; the student is not detached in
L_P; the student passes x' twice, so that its running averages see x', x', x.
Here they see x', then x, and the peer's see x' alone. There the last term of
L_P has a temperature t of its own and a factor t^2, but t is 1 in the authors'
commands, and is left out. Its checkpoints are chosen on test images, here on
images held out of training.
"""

import jax
import jax.numpy as jnp

from jax_robust_kd.core import LossOutput, Method
from jax_robust_kd.losses import cross_entropy, kl_divergence


def peeraid(
  label: float = 0.0,
  peer: float = 1.0,
  clean: float = 1.0,
  temperature: float = 5.0,
  peer_label: float = 1.0,
  peer_student: float = 0.1,
) -> Method:
  """Builds PeerAiD: student S and peer P learn side by side, without teacher.

  x' maximizes KL(P(x) || S(x')). The sum of the two losses is minimized:

    L_S = l1 CE(S(x'), y) + l2 T^2 KL(P_T(x') || S_T(x'))
          + l3 T^2 KL(S_T(x) || S_T(x'))
    L_P = g1 CE(P(x'), y) + g2 KL(S(x') || P(x'))

  Each network is a constant in the other's loss; the gradient of the last term
  of L_S flows through both of its sides.

  Args:
    label: l1, >= 0.
    peer: l2, >= 0.
    clean: l3, >= 0.
    temperature: T, > 0.
    peer_label: g1, >= 0.
    peer_student: g2, >= 0.

  Returns:
    The method, without teacher, with a peer.

  Examples:
    >>> from jax_robust_kd import methods
    >>> methods.peeraid(temperature=5.0).peer
    True

  References:
    Jung et al., CVPR 2024. Loss: confirmed by the official code.
  """

  def loss(ctx, batch, adv):
    on_adv = ctx.student(adv)
    on_clean = ctx.student(batch.image, batch_stats=on_adv.batch_stats)
    tutor = ctx.peer(adv)
    student, clean_student = on_adv.logits, on_clean.logits
    fixed_student, fixed_peer = jax.lax.stop_gradient((student, tutor.logits))
    scale = temperature**2
    terms = {
      'ce': label * cross_entropy(student, batch.target),
      'kl_peer': peer * scale * kl_divergence(student, fixed_peer, temperature),
      'kl_clean': clean
      * scale
      * kl_divergence(student, clean_student, temperature),
      'peer_ce': peer_label * cross_entropy(tutor.logits, batch.target),
      'peer_kl': peer_student * kl_divergence(tutor.logits, fixed_student),
    }
    terms = {name: jnp.mean(term) for name, term in terms.items()}
    return LossOutput(
      jnp.asarray(sum(terms.values())),
      on_clean.batch_stats,
      terms,
      peer_stats=tutor.batch_stats,
    )

  return Method(loss, _fool, teachers=(), peer=True)


def _fool(rng, ctx, batch, maximize):
  """Maximizes KL(P(x) || S(x'))."""
  target = ctx.peer(batch.image).logits

  def loss_fn(image):
    return kl_divergence(ctx.student(image).logits, target)

  return maximize(rng, loss_fn, batch.image).adv
