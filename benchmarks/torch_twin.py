"""The same work in plain PyTorch: what our speed is measured against.

Written for this comparison, as a careful PyTorch user would write it: eager,
channels_last, all cores, no gradient computed that is not used. It runs in an
environment of its own, which needs PyTorch and NumPy and not this project.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_models
from benchmarks.worker import Work, cores, serve

_EPSILON, _STEP_SIZE, _NOISE = 8 / 255, 2 / 255, 0.001


def cross_entropy(logits, target):
  """[B, K] logits and probabilities -> [B]."""
  return -(target * F.log_softmax(logits, 1)).sum(1)


def kl(logits, target_logits, temperature=1.0):
  """KL(softmax(target_logits / t) || softmax(logits / t)), [B]."""
  log_q = F.log_softmax(logits / temperature, 1)
  log_p = F.log_softmax(target_logits / temperature, 1)
  return (log_p.exp() * (log_p - log_q)).sum(1)


def project(adv, image):
  """The nearest point of the l_inf ball and of [0, 1]."""
  return (image + (adv - image).clamp(-_EPSILON, _EPSILON)).clamp(0, 1)


def nudge(image):
  """Moves images by a fixed pattern; see check_twin."""
  pattern = torch.arange(image.shape[0] * 3 * 32 * 32).sin()
  pattern = pattern.view(-1, 32, 32, 3).permute(0, 3, 1, 2)
  return (image + 0.01 * pattern).clamp(0, 1)


def ascend(loss_fn, image, num_steps, check):
  """Projected gradient ascent on the sum of `loss_fn`."""
  image = nudge(image) if check else image
  noise = 0 if check else _NOISE * torch.randn_like(image)
  adv = project(image + noise, image)
  for _ in range(num_steps):
    adv.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss_fn(adv).sum(), adv)
    with torch.no_grad():
      adv = project(adv + _STEP_SIZE * slope.sign(), image)
  return adv


def augment(image, label, check):
  """uint8 [B, 3, 32, 32] -> random crops and flips in [0, 1], one-hot."""
  target = F.one_hot(label, 10).float()
  x = image.float() / 255
  if not check:
    place = torch.randint(9, (2, len(x), 1, 1))
    grid = torch.arange(32)
    columns = grid.view(1, 1, -1) + place[1]
    flip = torch.rand(len(x), 1, 1) < 0.5
    columns = torch.where(flip, columns.flip(2), columns)
    rows = grid.view(1, -1, 1) + place[0]
    which = torch.arange(len(x)).view(-1, 1, 1)
    x = F.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)[which, rows, columns]
    x = x.permute(0, 3, 1, 2)
  return x.contiguous(memory_format=torch.channels_last), target


def perturb(method, student, teacher, x, target, maximize):
  """The inner problem of each method; student with running averages."""
  name = method['name']
  if name == 'kd':
    return x
  if name == 'pgd_at':
    return maximize(lambda z: cross_entropy(student(z), target), x)
  if name in ('adaad', 'advfunmatch'):
    return maximize(lambda z: kl(student(z), teacher(z)), x)
  with torch.no_grad():
    clean = (student if name == 'trades' else teacher)(x)
  return maximize(lambda z: kl(student(z), clean), x)


def outer_loss(method, student, teacher, x, target, adv):
  """The outer problem of each method; student in training mode."""
  name = method['name']
  with torch.no_grad():
    soft = teacher(x) if name in ('kd', 'rslad') else None
    soft = teacher(adv) if name in ('adaad', 'advfunmatch') else soft
  if name == 'kd':
    alpha, t = method['alpha'], method['temperature']
    out = student(x)
    hard = cross_entropy(out, target)
    return (alpha * t**2 * kl(out, soft, t) + (1 - alpha) * hard).mean()
  if name == 'pgd_at':
    return cross_entropy(student(adv), target).mean()
  if name == 'trades':
    clean = student(x)
    robust = kl(student(adv), clean).mean()
    return cross_entropy(clean, target).mean() + method['beta'] * robust
  alpha = method.get('alpha', 1.0)
  robust = kl(student(adv), soft).mean()
  if alpha == 1.0:
    return robust
  return alpha * robust + (1 - alpha) * kl(student(x), soft).mean()


def make_optimizer(student):
  """SGD as in our step: weight decay on kernels only."""
  kernels = [p for p in student.parameters() if p.ndim > 1]
  others = [p for p in student.parameters() if p.ndim <= 1]
  groups = [
    {'params': kernels, 'weight_decay': 5e-4},
    {'params': others, 'weight_decay': 0.0},
  ]
  return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)


def images(batch):
  """uint8 images and labels, the same as on the other side."""
  image = np.random.default_rng(0).integers(256, size=(batch, 32, 32, 3))
  image = torch.tensor(image, dtype=torch.uint8).permute(0, 3, 1, 2)
  return image, torch.arange(batch) % 10


def step_work(spec) -> Work:
  """One training step."""
  method, check = spec['method'], bool(spec.get('weights'))
  student = torch_models.build(spec['model'])
  teacher = torch_models.build('resnet18').eval().requires_grad_(False)
  if check:
    _write_weights(spec['weights'], student=student, teacher=teacher)
  optimizer = make_optimizer(student)
  image, label = images(spec['batch'])
  maximize = partial(ascend, num_steps=spec['attack_steps'], check=check)
  facts: dict = {'num_params': sum(p.numel() for p in student.parameters())}

  def run():
    x, target = augment(image, label, check)
    student.eval().requires_grad_(False)
    adv = perturb(method, student, teacher, x, target, maximize).detach()
    student.train().requires_grad_(True)
    optimizer.zero_grad()
    loss = outer_loss(method, student, teacher, x, target, adv)
    loss.backward()
    grads = [p.grad for p in student.parameters()]
    norm = torch.nn.utils.get_total_norm(grads)
    optimizer.step()
    facts.setdefault('first', [loss.item(), norm.item()])

  return Work({'step': run}, facts, {})


def _write_weights(path, **networks):
  arrays = {
    f'{name}/{key}': value.numpy()
    for name, network in networks.items()
    for key, value in network.state_dict().items()
  }
  np.savez(path, **arrays)


def network_work(spec) -> Work:
  """A network's forward pass and its two gradients."""
  network = torch_models.build(spec['model'])
  x, target = augment(*images(spec['batch']), check=True)

  @torch.no_grad()
  def forward(train):
    network.train(train)(x)

  def by_weights():
    network.train().requires_grad_(True).zero_grad()
    cross_entropy(network(x), target).mean().backward()

  def by_image():
    network.eval().requires_grad_(False)
    z = x.detach().requires_grad_(True)
    torch.autograd.grad(cross_entropy(network(z), target).sum(), z)

  runs = {
    'forward, eval': partial(forward, False),
    'forward, train': partial(forward, True),
    'gradient by weights': by_weights,
    'gradient by image': by_image,
  }
  return Work(runs, {}, {n: partial(profile, f) for n, f in runs.items()})


def profile(run) -> dict[str, float]:
  """Returns the share of the time in convolutions, BatchNorm and the rest."""
  activities = [torch.profiler.ProfilerActivity.CPU]
  with torch.profiler.profile(activities=activities) as prof:
    run()
  total = {'conv': 0.0, 'norm': 0.0, 'other': 0.0}
  for event in prof.key_averages():
    kind = 'conv' if 'conv' in event.key else 'other'
    kind = 'norm' if 'batch_norm' in event.key else kind
    total[kind] += event.self_cpu_time_total
  return {k: v / sum(total.values()) for k, v in total.items()}


def layer_work(spec) -> Work:
  """Single layers, forward and with both gradients; and a matrix product."""
  size = spec['matmul']
  a, b = torch.rand(size, size), torch.rand(size, size)
  runs = {'matmul': lambda: a @ b}
  for name, kind, inputs, features, pixels, kernel, stride in spec['layers']:
    if kind == 'norm':
      layer = torch.nn.BatchNorm2d(features)
    else:
      groups = inputs if kind == 'depthwise' else 1
      layer = torch_models.conv(inputs, features, kernel, stride, groups)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.rand(spec['batch'], inputs, pixels, pixels)
    x = x.contiguous(memory_format=torch.channels_last)
    runs[f'{name}, forward'] = torch.no_grad()(partial(layer, x))
    runs[f'{name}, both gradients'] = partial(_both_gradients, layer, x)
  return Work(runs, {}, {})


def _both_gradients(layer, x):
  x = x.detach().requires_grad_(True)
  y = layer(x)
  torch.autograd.grad(y, [x, *layer.parameters()], y.detach())


def setup(spec) -> Work:
  """Builds one entry."""
  torch.manual_seed(0)
  torch.set_num_threads(cores())
  kinds = {'step': step_work, 'networks': network_work, 'layers': layer_work}
  work = kinds[spec['kind']](spec)
  work.facts['versions'] = f'torch {torch.__version__}'
  return work


if __name__ == '__main__':
  serve(setup)
