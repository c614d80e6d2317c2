"""A small network in PyTorch, with the weights and modes of another program.

conv - BatchNorm - ReLU, twice, then the mean over pixels and a linear layer.
Weights come and go as NumPy arrays in the layouts of Flax: convolutions HWIO,
linear layers [inputs, outputs].
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn


class BatchNorm(nn.BatchNorm2d):
  """Keeps the biased variance, as models/layers.py.

  That of PyTorch keeps n / (n - 1) times as much.
  """

  def forward(self, x):
    if not self.training:
      return super().forward(x)
    kept = 0.9 * self.running_var
    y = super().forward(x)
    n = x.numel() // x.shape[1]
    self.running_var = kept + (self.running_var - kept) * (n - 1) / n
    return y


class Net(nn.Module):
  """The network; a frozen one has no gradient and stays in eval mode."""

  def __init__(self, params, stats, frozen=False):
    super().__init__()
    weights = [torch.tensor(_oihw(params[f'conv{i}'])) for i in (0, 1)]
    self.convs = nn.ModuleList(
      nn.Conv2d(w.shape[1], w.shape[0], 3, i + 1, 1, bias=False)
      for i, w in enumerate(weights)
    )
    self.norms = nn.ModuleList(BatchNorm(len(w)) for w in weights)
    self.head = nn.Linear(*params['kernel'].shape)
    self.double()
    with torch.no_grad():
      for i, (conv, norm) in enumerate(
        zip(self.convs, self.norms, strict=True)
      ):
        conv.weight.copy_(weights[i])
        norm.weight.copy_(torch.tensor(params[f'scale{i}']))
        norm.bias.copy_(torch.tensor(params[f'shift{i}']))
        norm.running_mean.copy_(torch.tensor(stats[f'mean{i}']))
        norm.running_var.copy_(torch.tensor(stats[f'var{i}']))
      self.head.weight.copy_(torch.tensor(params['kernel'].T))
      self.head.bias.copy_(torch.tensor(params['bias']))
    self.train(not frozen).requires_grad_(not frozen)

  def features(self, x):
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x = torch.relu(norm(conv(x)))
    return x.mean(dim=(2, 3))

  def forward(self, x):
    return self.head(self.features(x))


class Networks(NamedTuple):
  """Who takes part; `clean` is a teacher that was trained on clean images."""

  student: Net
  teacher: Net
  clean: Net


def _oihw(kernel):
  return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def images(array):
  """[B, H, W, C] -> a tensor [B, C, H, W]."""
  return torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def from_images(tensor):
  """The reverse."""
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def gradients(net):
  """name -> gradient, in the layouts of Flax."""
  found = {'kernel': net.head.weight.grad.T, 'bias': net.head.bias.grad}
  for i, (conv, norm) in enumerate(zip(net.convs, net.norms, strict=True)):
    found[f'conv{i}'] = conv.weight.grad.permute(2, 3, 1, 0)
    found[f'scale{i}'] = norm.weight.grad
    found[f'shift{i}'] = norm.bias.grad
  return {name: value.numpy() for name, value in found.items()}


def averages(net):
  """name -> running average."""
  found = {}
  for i, norm in enumerate(net.norms):
    found[f'mean{i}'] = norm.running_mean
    found[f'var{i}'] = norm.running_var
  return {name: value.numpy().copy() for name, value in found.items()}
