"""CRD's contrast as in HobbitLong/RepDistiller b84f547, on any row numbers."""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

_EPS = 1e-7


def _embed(head, features):
  kernel, bias = head
  projected = features @ kernel + bias
  return projected / projected.pow(2).sum(1, keepdim=True).sqrt()


def _scores(live, bank, rows, tau):
  return torch.exp(torch.einsum('bnd,bd->bn', bank[rows], live) / tau)


def _contrast(score, z, num_rows):
  """The image's own row is in column 0; Eq. 18."""
  u = score / z
  noise = (score.shape[1] - 1) / num_rows
  own = torch.log(u[:, 0] / (u[:, 0] + noise + _EPS))
  others = torch.log(noise / (u[:, 1:] + noise + _EPS))
  return -(own.sum() + others.sum()) / len(score)


def crd(
  networks, heads, image, label, rows, memory, *,
  gamma=1.0, alpha=0.0, beta=0.8, temperature=4.0, tau=0.07, momentum=0.5,
):  # fmt: skip
  """gamma CE + alpha t^2 KL + beta contrast; `memory` moves.

  Args:
    networks: student and teacher.
    heads: 'student' and 'teacher', each (kernel, bias).
    image: [B, C, H, W].
    label: [B].
    rows: [B, 1 + N], the image's own row first, then those of negatives.
    memory: banks 'student' and 'teacher' [M, d]; 'z' once it is set.
    gamma: weight of the labels.
    alpha: weight of the teacher's logits.
    beta: weight of the contrast.
    temperature: of the logits.
    tau: of the contrast.
    momentum: of the banks.
  """
  features = networks.student.features(image)
  logits = networks.student.head(features)
  with torch.no_grad():
    target_features = networks.teacher.features(image)
    target = networks.teacher.head(target_features)
  live = {
    'student': _embed(heads['student'], features),
    'teacher': _embed(heads['teacher'], target_features),
  }
  scores = [
    _scores(live['student'], memory['teacher'], rows, tau),
    _scores(live['teacher'], memory['student'], rows, tau),
  ]
  count = len(memory['student'])
  if 'z' not in memory:
    memory['z'] = [score.mean().item() * count for score in scores]
  pairs = zip(scores, memory['z'], strict=True)
  contrast = sum(_contrast(score, z, count) for score, z in pairs)
  for name, new in live.items():
    mixed = momentum * memory[name][rows[:, 0]] + (1 - momentum) * new.detach()
    bank = memory[name].clone()
    bank[rows[:, 0]] = mixed / mixed.pow(2).sum(1, keepdim=True).sqrt()
    memory[name] = bank
  log_q = log_softmax(logits / temperature, 1)
  soft = kl_div(log_q, softmax(target / temperature, 1), reduction='sum')
  soft = soft * temperature**2 / len(image)
  return gamma * cross_entropy(logits, label) + alpha * soft + beta * contrast
