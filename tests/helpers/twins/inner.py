"""The inner problems of the official codes, from a start that is given.

Each takes (networks, image, label, start, threat), `threat` being the radius,
the step and their number, and leaves the student in training mode. The official
starts are 0.001 N(0, I), and U(-radius, radius) of ARD and IAD; none of them is
cut to [0, 1] before the first step.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax


class Threat(NamedTuple):
  """The ball and the way through it; igdm.py of SAAD's repository, unlike its
  saad.py, gives 2/255 as radius and 8/255 as step."""

  epsilon: float
  step_size: float
  num_steps: int


def _ascend(loss_fn, image, start, threat):
  low, high = image - threat.epsilon, image + threat.epsilon
  adv = start
  for _ in range(threat.num_steps):
    adv = adv.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss_fn(adv), adv)
    adv = adv.detach() + threat.step_size * slope.sign()
    adv = torch.minimum(torch.maximum(adv, low), high).clamp(0, 1)
  return adv.detach()


def _kl_sum(logits, target):
  return kl_div(log_softmax(logits, 1), target, reduction='sum')


def _in_eval(inner):
  def run(networks, *args):
    networks.student.eval()
    adv = inner(networks, *args)
    networks.student.train()
    return adv

  return run


def labels_in_training_mode(networks, image, label, start, threat):
  """ARD and IAD: BatchNorm by the batch, and every pass moves its averages."""

  def loss_fn(adv):
    return cross_entropy(networks.student(adv), label, reduction='sum')

  return _ascend(loss_fn, image, start, threat)


@_in_eval
def labels(networks, image, label, start, threat):
  """MART and MTARD."""

  def loss_fn(adv):
    return cross_entropy(networks.student(adv), label)

  return _ascend(loss_fn, image, start, threat)


@_in_eval
def clean_teacher_output(networks, image, label, start, threat):
  """RSLAD: the teacher has seen the clean images once."""
  target = softmax(networks.teacher(image), 1)

  def loss_fn(adv):
    return _kl_sum(networks.student(adv), target)

  return _ascend(loss_fn, image, start, threat)


@_in_eval
def clean_student_output(networks, image, label, start, threat):
  """TRADES: the student's own clean output."""

  def loss_fn(adv):
    target = softmax(networks.student(image), 1)
    return _kl_sum(networks.student(adv), target)

  return _ascend(loss_fn, image, start, threat)


@_in_eval
def both(networks, image, label, start, threat):
  """AdaAD and IGDM: through the teacher too."""

  def loss_fn(adv):
    target = softmax(networks.teacher(adv), 1)
    return _kl_sum(networks.student(adv), target)

  return _ascend(loss_fn, image, start, threat)


@_in_eval
def linear_teacher(networks, image, label, start, threat):
  """SAAD: the label's logit alone follows the image, to first order."""
  image = image.detach().requires_grad_(True)
  logits = networks.teacher(image)
  of_label = logits.gather(1, label[:, None]).sum()
  (slope,) = torch.autograd.grad(of_label, image)
  image, logits = image.detach(), logits.detach()

  def loss_fn(adv):
    change = (slope * (adv - image)).flatten(1).sum(1)
    moved = logits.scatter_add(1, label[:, None], change[:, None])
    return _kl_sum(networks.student(adv), softmax(moved, 1))

  return _ascend(loss_fn, image, start, threat)


INNER = {
  'ard': labels_in_training_mode,
  'rslad': clean_teacher_output,
  'iad': labels_in_training_mode,
  'adaad': both,
  'mart': labels,
  'trades': clean_student_output,
  'mtard': labels,
  'igdm': both,
  'saad': linear_teacher,
}
