"""Our side of the comparison: the real training step, networks and layers."""

from collections.abc import Callable
from functools import partial
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.jax_profile import profile
from benchmarks.worker import Work, serve
from jax_robust_kd import data, models, networks
from jax_robust_kd.attacks.ascent import ascent, direction, project
from jax_robust_kd.config import base_config
from jax_robust_kd.interop import torch_import
from jax_robust_kd.losses import cross_entropy
from jax_robust_kd.models.layers import make_layers
from jax_robust_kd.planning.flops import count_flops, step_cost
from jax_robust_kd.runtime import parallel
from jax_robust_kd.training import build
from jax_robust_kd.training.step import train_step

_RADIUS = {'epsilon': 8 / 255, 'step_size': 2 / 255}


def make_dataset(batch: int) -> data.Dataset:
  """Random images in the form of CIFAR-10, the same as on the other side."""
  image = np.random.default_rng(0).integers(256, size=(batch, 32, 32, 3))
  split = data.Split(image.astype(np.uint8), np.arange(batch) % 10)
  info = data.DATASETS['cifar10']
  names = tuple('0123456789')
  return data.Dataset(split, split, split, 10, names, info.mean, info.std, '')


def make_config(spec: dict, student: str) -> Any:
  """The config of an entry; augmentation is crop and flip for all methods."""
  c = base_config('cifar10')
  c.unlock()
  c.student = {'name': student}
  c.method = spec['method']
  c.data.batch_size = spec['batch']
  c.train_attack.num_steps = spec['attack_steps']
  if spec.get('weights'):
    c.data.augment.update(crop_pad=0, flip=False)
    c.train_attack.init = 'zero'
  return c


def nudge(image):
  """Moves images by a fixed pattern; see check_twin."""
  pattern = jnp.sin(jnp.arange(image.size, dtype=jnp.float32))
  return jnp.clip(image + 0.01 * pattern.reshape(image.shape), 0, 1)


def make_network(spec: dict, name: str, who: str, dataset) -> networks.Network:
  """Draws a network, or reads the weights that the twin has written."""
  c = make_config(spec, name)
  network = build.init_network(c, dataset)
  if not spec.get('weights'):
    return network
  with np.load(spec['weights']) as file:
    keys = [k for k in file.files if k.startswith(f'{who}/')]
    state = {k.removeprefix(f'{who}/'): file[k] for k in keys}
  module = build.make_student(c, dataset)
  variables = torch_import.import_state(state, module)
  return network._replace(variables=variables)


def step_work(spec: dict) -> Work:
  """One training step as `jax_robust_kd.train` runs it, on one device."""
  dataset = make_dataset(spec['batch'])
  c = make_config(spec, spec['model'])
  student = make_network(spec, spec['model'], 'student', dataset)
  teacher = make_network(spec, 'resnet18', 'teacher', dataset)
  asked = build.make_method(c).teachers
  networks = build.Networks(student, dict.fromkeys(asked, teacher), None)
  recipe, _ = build.make_recipe(c, networks, dataset, 100)
  if spec.get('weights'):
    recipe = recipe._replace(maximize=_nudged(recipe.maximize))
  state = build.make_state(c, recipe, networks, dataset)
  frozen = dict.fromkeys(asked, teacher.variables)
  function = partial(train_step, recipe)
  shape = dataset.train.image.shape
  flops = step_cost(function, state, frozen, student.forward, shape)[1]
  facts = {
    'flops': flops,
    'num_params': models.num_params(student.variables['params']),
  }
  batch = {
    'image': dataset.train.image[None],
    'label': dataset.train.label.astype(np.int32)[None],
    'index': np.arange(spec['batch'], dtype=np.int32)[None],
    'row': np.arange(spec['batch'], dtype=np.int32)[None],
  }
  frozen = parallel.replicate(frozen)
  held = [parallel.replicate(state)]
  mapped: Any = parallel.pmap_step(function)
  begin = time.perf_counter()
  step = mapped.lower(held[0], frozen, batch).compile()
  facts['compile'] = time.perf_counter() - begin
  memory = step.memory_analysis()
  facts['buffers'] = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  ) / 1e6

  def run():
    held[0], metrics = jax.block_until_ready(step(held[0], frozen, batch))
    first = [float(metrics['loss']), float(metrics['grad_norm'])]
    facts.setdefault('first', first)

  return Work({'step': run}, facts, {})


def _nudged(maximize):
  return lambda rng, loss_fn, image: maximize(rng, loss_fn, nudge(image))


def _network(spec: dict) -> tuple[Any, Any, jax.Array, Callable]:
  """Returns weights, images, targets and (params, image, mode) -> loss."""
  dataset = make_dataset(spec['batch'])
  fields = {'mean': dataset.mean, 'std': dataset.std}
  model = models.build(spec['model'], 10, fields)
  image = jnp.asarray(dataset.train.image, jnp.float32) / 255
  variables = models.init(model, jax.random.key(0), image[:1])
  target = jax.nn.one_hot(dataset.train.label, 10)

  def loss(params, stats, image, mode):
    weights = {'params': params, 'batch_stats': stats}
    out = models.forward(model, weights, image, mode)
    return cross_entropy(out.logits, target)

  return variables['params'], variables['batch_stats'], image, loss


def network_work(spec: dict) -> Work:
  """A network's forward pass and its two gradients."""
  params, stats, image, loss = _network(spec)
  args = (params, stats, image)
  by_weights = jax.grad(lambda *a: jnp.mean(loss(*a, 'train')))
  by_image = jax.grad(lambda *a: jnp.sum(loss(*a, 'eval')), argnums=2)
  functions = {
    'forward, eval': lambda *a: loss(*a, 'eval'),
    'forward, train': lambda *a: loss(*a, 'train'),
    'gradient by weights': by_weights,
    'gradient by image': by_image,
  }
  flops = {n: count_flops(f, *args) for n, f in functions.items()}
  compiled = {
    n: jax.jit(f).lower(*args).compile() for n, f in functions.items()
  }
  runs = {n: _waiting(f, *args) for n, f in compiled.items()}
  shares = {n: partial(profile, compiled[n], run) for n, run in runs.items()}
  return Work(runs, {'flops': flops}, shares)


def _waiting(function, *args):
  return lambda: jax.block_until_ready(function(*args))


def loop_work(spec: dict) -> Work:
  """The same gradients inside loops and branches, and outside."""
  network = _network(spec)
  attacks = _attack_runs(*network, spec['attack_steps'])
  gradients = _gradient_runs(*network, spec['micro_batches'])
  return Work({**attacks, **gradients}, {}, {})


def _attack_runs(params, stats, image, loss, steps: int) -> dict:
  """Projected gradient ascent as one program, and as one call per step."""
  keys = jax.random.split(jax.random.key(0), len(image))
  slope_fn = jax.grad(lambda *a: jnp.sum(loss(*a, 'eval')), argnums=2)

  @jax.jit
  def scanned(params, stats):
    loss_fn = partial(loss, params, stats, mode='eval')
    return ascent(
      keys,
      loss_fn,
      image,
      norm='linf',
      num_steps=steps,
      init='zero',
      **_RADIUS,
    ).adv

  @jax.jit
  def one_step(params, stats, adv):
    slope = slope_fn(params, stats, adv)
    adv = adv + _RADIUS['step_size'] * direction(slope, 'linf')
    return project(adv, image, 'linf', _RADIUS['epsilon'])

  def called(params, stats):
    adv = image
    for _ in range(steps):
      adv = one_step(params, stats, adv)
    return adv

  return {
    'attack, scan': _waiting(scanned, params, stats),
    'attack, calls': _waiting(called, params, stats),
  }


def _gradient_runs(params, stats, image, loss, count: int) -> dict:
  """The gradient by the weights, outside and inside scan and cond."""
  gradient = jax.grad(lambda *a: jnp.mean(loss(*a, 'train')))

  def zeros(params, *_):
    return jax.tree.map(jnp.zeros_like, params)

  @jax.jit
  def accumulated(params, stats, images):
    def add(total, x):
      return jax.tree.map(jnp.add, total, gradient(params, stats, x)), None

    return jax.lax.scan(add, zeros(params), images)[0]

  @jax.jit
  def branched(flag, *a):
    return jax.lax.cond(flag, gradient, zeros, *a)

  network = (params, stats, image)
  images = jnp.stack([image] * count)
  return {
    'gradient, outside': _waiting(jax.jit(gradient), *network),
    'gradient, scan': _waiting(accumulated, params, stats, images),
    'gradient, cond': _waiting(branched, jnp.array(True), *network),
  }


def layer_work(spec: dict) -> Work:
  """Single layers, forward and with both gradients; and a matrix product."""
  make = make_layers(True, jnp.float32, None, 'relu', 'symmetric')
  key = jax.random.key(0)
  a, b = jax.random.uniform(key, (2, spec['matmul'], spec['matmul']))
  runs = {'matmul': _waiting(jax.jit(jnp.matmul), a, b)}
  for name, kind, inputs, features, pixels, kernel, stride in spec['layers']:
    if kind == 'norm':
      layer = make.norm()
    else:
      layer = make.conv(features, kernel, stride, kind == 'depthwise')
    x = jax.random.uniform(key, (spec['batch'], pixels, pixels, inputs))
    variables = layer.init(key, x)
    y, gradients = _layer_functions(layer)
    runs[f'{name}, forward'] = _waiting(jax.jit(y), variables, x)
    runs[f'{name}, both gradients'] = _waiting(jax.jit(gradients), variables, x)
  return Work(runs, {}, {})


def _layer_functions(layer):
  def forward(variables, x):
    return layer.apply(variables, x, mutable=['batch_stats'])

  def gradients(variables, x):
    def of(params, x):
      return forward({**variables, 'params': params}, x)[0]

    y, pull = jax.vjp(of, variables['params'], x)
    return pull(y)

  return forward, gradients


def setup(spec: dict) -> Work:
  """Builds one entry."""
  kinds = {
    'step': step_work,
    'networks': network_work,
    'loops': loop_work,
    'layers': layer_work,
  }
  work = kinds[spec['kind']](spec)
  work.facts['versions'] = f'jax {jax.__version__}'
  return work


if __name__ == '__main__':
  serve(setup)
