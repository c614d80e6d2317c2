"""The outer losses of the official codes: reductions, constants and passes.

Each takes (networks, image, label, adv) and hyper-parameters, passes the
student in training mode in the official order, and returns the loss. A keyword
whose default is the official behaviour switches off what ours leaves out. Read
in the commits
  ard     goldblum/AdversariallyRobustDistillation 779ade3
  rslad   zibojia/RSLAD c40e04f
  iad     ZFancy/IAD a8091a8, IAD-I.py and IAD-II.py
  adaad   boyellow/AdaAD 9e5c6e5
  mart    YisenWang/MART 2d83e17
  trades  yaodongyu/TRADES 6e8e11b
  mtard   zhaoshiji123/MTARD 6480a1b
  igdm    HongsinLee/saad 295121c, as saad
"""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax


def _kl(logits, target_logits, t=1.0):
  """[B, K] terms of KL(target || logits)."""
  log_q, p = log_softmax(logits / t, 1), softmax(target_logits / t, 1)
  return kl_div(log_q, p, reduction='none')


def _floored(logits, target_logits, floor):
  """The same with log(p + floor), which a student does not feel."""
  p = softmax(target_logits, 1)
  return p * (torch.log(p + floor) - log_softmax(logits, 1))


def ard(networks, image, label, adv, *, alpha=1.0, temperature=30.0):
  """Averages over classes; passes x whatever its weight."""
  on_adv = networks.student(adv)
  target = networks.teacher(image)
  on_clean = networks.student(image)
  soft = _kl(on_adv, target, temperature).mean() * temperature**2
  return alpha * soft + (1 - alpha) * cross_entropy(on_clean, label)


def rslad(networks, image, label, adv, *, floor=1e-5):
  """Averages over classes."""
  target = networks.teacher(image)
  terms = [
    _floored(networks.student(x), target, floor).mean() for x in (adv, image)
  ]
  return (5 * terms[0] + terms[1]) / 6


def iad_i(
  networks, image, label, adv, *,
  alpha=1.0, beta=0.1, temperature=1.0, introspect=True,
):  # fmt: skip
  """The trust A is no factor of the teacher's term; x' is passed twice."""
  target = networks.teacher(image)
  on_adv = networks.student(adv)
  networks.student(adv)
  loss = alpha * temperature**2 * _kl(on_adv, target, temperature).sum(1).mean()
  if introspect:
    itself = _kl(on_adv, networks.student(image)).sum(1)
    distrust = 1 - _trust(networks, label, adv, beta)
    loss = loss + alpha * (distrust * itself).mean()
  hard = cross_entropy(networks.student(image), label)
  return loss + (1 - alpha) * hard


def iad_ii(
  networks, image, label, adv, *, alpha1=0.5, alpha2=0.25, beta=0.1,
  temperature=1.0, introspect=True, square_both=True,
):  # fmt: skip
  """A is a factor here, and t^2 one of the student's own term too."""
  t = temperature
  on_adv = networks.student(adv)
  robust = _kl(on_adv, networks.teacher(adv), t).sum(1)
  clean = _kl(on_adv, networks.clean(adv), t).sum(1)
  itself = 0.0
  if introspect:
    trust = _trust(networks, label, adv, beta)
    itself = (1 - trust) * _kl(on_adv, networks.student(image)).sum(1)
    robust = trust * robust
  own = t**2 if square_both else 1.0
  soft = alpha1 * (t**2 * robust + own * itself) + alpha2 * t**2 * clean
  return (1 - alpha1 - alpha2) * cross_entropy(on_adv, label) + soft.mean()


def _trust(networks, label, adv, beta):
  p = softmax(networks.teacher(adv), 1).gather(1, label[:, None])[:, 0]
  return p.detach() ** beta


def adaad(networks, image, label, adv, *, alpha=1.0, reduction='mean'):
  """'mean' is over classes too, on CIFAR-10; 'batchmean' is that of CIFAR-100.

  Passes x first, whatever its weight.
  """
  on_clean, on_adv = networks.student(image), networks.student(adv)
  each = [
    _kl(on_adv, networks.teacher(adv)),
    _kl(on_clean, networks.teacher(image)),
  ]
  if reduction == 'batchmean':
    each = [terms.sum(1) for terms in each]
  return alpha * each[0].mean() + (1 - alpha) * each[1].mean()


def trades(networks, image, label, adv, *, beta=6.0):
  """Passes x again for the divergence."""
  hard = cross_entropy(networks.student(image), label)
  on_adv = networks.student(adv)
  robust = _kl(on_adv, networks.student(image)).sum() / len(image)
  return hard + beta * robust


def mart(networks, image, label, adv, *, beta=5.0):
  """With 1.0001, 1.0000001 and 1e-12 where the code has them."""
  on_clean, on_adv = networks.student(image), networks.student(adv)
  p_clean, p_adv = softmax(on_clean, 1), softmax(on_adv, 1)
  right = torch.nn.functional.one_hot(label, p_adv.shape[1]).bool()
  rival = p_adv.masked_fill(right, -1.0).argmax(1, keepdim=True)
  margin = -torch.log(1.0001 - p_adv + 1e-12).gather(1, rival).mean()
  boosted = cross_entropy(on_adv, label) + margin
  each = kl_div(torch.log(p_adv + 1e-12), p_clean, reduction='none').sum(1)
  missed = 1.0000001 - p_clean[right]
  return boosted + beta * (each * missed).mean()


def mtard(networks, image, label, adv, state, *, rate=0.025, floor=1e-5):
  """Averages over classes; `state` {'clean': weight, 'first': losses} moves."""
  on_adv, on_clean = networks.student(adv), networks.student(image)
  robust = _floored(on_adv, networks.teacher(adv), floor).mean()
  clean = _floored(on_clean, networks.clean(image), floor).mean()
  now = robust.item(), clean.item()
  first = state.setdefault('first', now)
  relative = [a / b for a, b in zip(now, first, strict=True)]
  weight = state.get('clean', 0.5)
  weight -= rate * (weight - relative[1] / sum(relative))
  state['clean'] = weight
  return (1 - weight) * robust + weight * clean


def _images_gradient(networks, image, adv, on_adv):
  """[B, K] terms of IGDM; x - d is not cut to [0, 1]."""
  opposite = image - (adv - image)
  change = networks.teacher(adv) - networks.teacher(opposite)
  return _kl(on_adv - networks.student(opposite), change)


def igdm(networks, image, label, adv, *, alpha=1.0, epoch=200):
  """Upon AdaAD without its clean term; the weight grows by epochs of 200."""
  on_adv = networks.student(adv)
  gradient = _images_gradient(networks, image, adv, on_adv).sum(1).mean()
  matched = _kl(on_adv, networks.teacher(adv)).sum(1).mean()
  return matched + alpha * (epoch / 200) * gradient


def saad(
  networks, image, label, adv, *, alpha=1.0, beta=0.0, gamma=1.0, epoch=200
):
  """Passes x last, whatever its weight; `gamma` is the order of the entropy."""
  target = networks.teacher(adv)
  on_adv = networks.student(adv)
  gradient = _images_gradient(networks, image, adv, on_adv).sum(1)
  on_clean = networks.student(image)
  p = softmax(target, 1)
  if gamma == 1.0:
    entropy = -(p * torch.log(p + 1e-12)).sum(1)
  else:
    entropy = torch.log((p**gamma).sum(1) + 1e-12) / (1 - gamma)
  weight = 5 * (entropy - entropy.min())
  share = weight / (weight.max() + 1e-8)
  matched = _kl(on_adv, target).sum(1) + alpha * (epoch / 200) * gradient
  clean = _kl(on_clean, networks.teacher(image)).sum(1)
  return (weight * matched + beta * (1 - share) * clean).mean()
