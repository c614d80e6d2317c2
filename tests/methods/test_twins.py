"""Methods against the official codes' behaviour in PyTorch; run by hand.

The twins (tests/twins) are written from the official repositories, in their
order of passes and with their reductions. Both sides start from the same
weights and images and compute in float64, so that only a difference of meaning
is seen: every number agrees to 1e-5 of its norm, up to a factor or an order of
passes that a case names.
"""

from functools import partial
from importlib import import_module
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks import ascent
from jax_robust_kd.attacks.ascent import start
from jax_robust_kd.core import AXIS, Batch, Context, Output
from jax_robust_kd.methods import METHODS
from jax_robust_kd.methods.crd import draw

pytestmark = pytest.mark.torch

B, K, PIXELS, ROWS = 12, 5, 8, 40
RNG = np.random.default_rng(0)
LABEL = np.arange(B) % K
TOLERANCE = 1e-5


def weights(width):
  """Weights and running averages of tests/helpers/twins/network.py."""
  sizes, params, stats = (3, width, 2 * width), {}, {}
  for i in range(2):
    shape = 3, 3, sizes[i], sizes[i + 1]
    params[f'conv{i}'] = RNG.normal(size=shape) * (2 / 9 / sizes[i]) ** 0.5
    params[f'scale{i}'] = RNG.uniform(0.5, 1.5, sizes[i + 1])
    params[f'shift{i}'] = RNG.normal(size=sizes[i + 1]) * 0.3
    stats[f'mean{i}'] = RNG.normal(size=sizes[i + 1]) * 0.3
    stats[f'var{i}'] = RNG.uniform(0.5, 1.5, sizes[i + 1])
  params['kernel'] = RNG.normal(size=(sizes[2], K)) * 2
  params['bias'] = RNG.normal(size=K)
  return params, stats


NETWORKS = {'student': weights(4), 'robust': weights(6), 'clean': weights(6)}


def noisy(image):
  moved = image + RNG.uniform(-8 / 255, 8 / 255, image.shape)
  return np.clip(moved, 0, 1)


IMAGE = RNG.uniform(size=(2, B, PIXELS, PIXELS, 3))  # of two steps
ADV = noisy(IMAGE)


@pytest.fixture(autouse=True)
def float64():
  pytest.importorskip('torch')
  with jax.enable_x64(True):
    yield


def twin(module):
  return import_module(f'helpers.twins.{module}')


# Our side


def forward(params, stats, x, mode):
  """The network of tests/helpers/twins/network.py; `mode` as models.forward."""
  moved = {}
  for i in range(2):
    x = jax.lax.conv_general_dilated(
      x, params[f'conv{i}'], (i + 1, i + 1), ((1, 1), (1, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    mean, var = stats[f'mean{i}'], stats[f'var{i}']
    if mode != 'eval':
      mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    moved[f'mean{i}'] = 0.9 * stats[f'mean{i}'] + 0.1 * mean
    moved[f'var{i}'] = 0.9 * stats[f'var{i}'] + 0.1 * var
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    x = jax.nn.relu(x * params[f'scale{i}'] + params[f'shift{i}'])
  pooled = x.mean(axis=(1, 2))
  logits = pooled @ params['kernel'] + params['bias']
  kept = moved if mode == 'train' else stats
  return Output(logits, {'pooled': pooled}, kept)


def context(params, mode, keys, progress=1.0, memory=None):
  def network(name, mode, params, image, batch_stats=None):
    stats = NETWORKS[name][1] if batch_stats is None else batch_stats
    return forward(params, stats, image, mode)

  teachers = {
    name: partial(network, name, 'eval', NETWORKS[name][0])
    for name in ('robust', 'clean')
  }
  student = partial(network, 'student', mode, params['student'])
  return Context(
    student, teachers['robust'], params['heads'], jnp.asarray(progress),
    teachers, None, memory, keys,
  )  # fmt: skip


def keys():
  return jax.random.split(jax.random.key(3), B)


def batch(step):
  """Rows of the second step are partly those of the first."""
  row = jnp.arange(B, dtype=jnp.int32) + step * B // 2
  return Batch(jnp.asarray(IMAGE[step]), jnp.eye(K)[LABEL], row)


def ours(method, step=0, heads=None, adv=None, **state):
  """Returns (gradients, LossOutput), on one device."""

  @partial(jax.vmap, axis_name=AXIS)
  def device(batch, adv, keys):
    def loss(params):
      out = method.loss(context(params, 'train', keys, **state), batch, adv)
      return out.loss, out

    params = {'student': NETWORKS['student'][0], 'heads': heads or {}}
    params = jax.tree.map(jnp.asarray, params)
    return jax.grad(loss, has_aux=True)(params)

  adv = ADV[step] if adv is None else adv
  args = jax.tree.map(
    lambda x: x[None], (batch(step), jnp.asarray(adv), keys())
  )
  return jax.tree.map(lambda x: x[0], jax.jit(device)(*args))


# Their side


def networks():
  """Fresh twins of all networks."""
  net = twin('network')
  frozen = [net.Net(*NETWORKS[n], frozen=True) for n in ('robust', 'clean')]
  return net.Networks(net.Net(*NETWORKS['student']), *frozen)


def tensors(step=0):
  import torch

  images = twin('network').images
  return images(IMAGE[step]), torch.tensor(LABEL), images(ADV[step])


def averages_after(*passes):
  """The student's running averages after passes over images in this order."""
  student = networks().student
  for images in passes:
    student(images)
  return twin('network').averages(student)


def moved(averages):
  before = NETWORKS['student'][1]
  return {name: np.asarray(averages[name]) - before[name] for name in before}


def assert_close(found, wanted):
  """Every array of two dicts, by the norm of the difference."""
  assert found.keys() == wanted.keys()
  for name in wanted:
    a, b = np.asarray(found[name]), np.asarray(wanted[name])
    assert a.shape == b.shape
    size = np.linalg.norm(b)
    assert size > 0
    assert np.linalg.norm(a - b) <= TOLERANCE * size, name


class Case(NamedTuple):
  """A method, its twin, and where they are meant to differ.

  Attributes:
    method: its name.
    arguments: of the method.
    twin: name in twins/outer.py.
    options: of the twin.
    official: the official order of passes of the student in training mode: x,
      a(dversarial) or o(pposite, x - d).
    passes: ours.
    factor: our loss over the official one.
    progress: share of the training done.
  """

  method: str
  arguments: dict
  twin: str
  options: dict
  official: str
  passes: str
  factor: float = 1.0
  progress: float = 1.0


IAD_II = dict(
    version='II', robust_weight=0.5, clean_weight=0.25, begin=0.2,
    weigh_teacher=True,
)  # fmt: skip
CASES = [
    # The reduction over classes is ARD's `scale`.
    Case('ard', dict(scale=1 / K), 'ard', {}, 'ax', 'a'),
    Case('ard', dict(scale=1 / K, alpha=0.7, temperature=4.0),
         'ard', dict(alpha=0.7, temperature=4.0), 'ax', 'ax'),
    Case('rslad', {}, 'rslad', dict(floor=0.0), 'ax', 'ax', factor=K),
    # The official code passes the same images again, one of them unused.
    Case('iad', {}, 'iad_i', {}, 'aaxx', 'ax'),
    Case('iad', {}, 'iad_i', dict(introspect=False), 'aax', 'ax',
         progress=59 / 200),
    Case('iad', dict(robust_weight=0.6, temperature=3.0, beta=0.5), 'iad_i',
         dict(alpha=0.6, temperature=3.0, beta=0.5), 'aaxx', 'ax',
         progress=60 / 200),
    Case('iad', IAD_II, 'iad_ii', {}, 'ax', 'ax', progress=40 / 200),
    Case('iad', IAD_II, 'iad_ii', dict(introspect=False), 'a', 'ax',
         progress=39 / 200),
    # t^2 is ours on the teachers' terms alone.
    Case('iad', IAD_II | dict(temperature=2.0), 'iad_ii',
         dict(temperature=2.0, square_both=False), 'ax', 'ax'),
    Case('adaad', {}, 'adaad', {}, 'xa', 'a', factor=K),
    Case('adaad', dict(alpha=0.6), 'adaad', dict(alpha=0.6), 'xa', 'ax',
         factor=K),
    Case('adaad', dict(alpha=0.6), 'adaad',
         dict(alpha=0.6, reduction='batchmean'), 'xa', 'ax'),
    Case('mart', {}, 'mart', {}, 'xa', 'xa'),
    # The third pass gives the logits of the first, and moves averages alone.
    Case('trades', {}, 'trades', {}, 'xax', 'xa'),
    Case('igdm', dict(alpha=5.0), 'igdm', dict(alpha=5.0, epoch=40), 'ao', 'ao',
         progress=40 / 200),
    Case('saad', {}, 'saad', {}, 'aox', 'ao'),
    Case('saad', dict(alpha=10.0, beta=2.0, order=2.0), 'saad',
         dict(alpha=10.0, beta=2.0, gamma=2.0, epoch=50), 'aox', 'aox',
         progress=50 / 200),
]  # fmt: skip


def name_of(case):
  return f'{case.twin}-{case.options}'


@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_loss_gradient_and_running_averages(case):
  method = METHODS[case.method](**case.arguments)
  grads, out = ours(method, progress=case.progress)

  nets, (image, label, adv) = networks(), tensors()
  function = getattr(twin('outer'), case.twin)
  loss = function(nets, image, label, adv, **case.options)
  (loss * case.factor).backward()
  np.testing.assert_allclose(
    out.loss, case.factor * loss.item(), rtol=TOLERANCE
  )
  assert_close(grads['student'], twin('network').gradients(nets.student))

  by_letter = {'x': image, 'a': adv, 'o': 2 * image - adv}
  official, passes = (
    averages_after(*map(by_letter.get, order))
    for order in (case.official, case.passes)
  )
  assert_close(moved(twin('network').averages(nets.student)), moved(official))
  assert_close(moved(out.batch_stats), moved(passes))


def test_the_floor_of_rslad_moves_the_loss_by_a_constant_alone():
  """log(T + 1e-5) there: ours is the divergence itself."""
  nets, (image, label, adv) = networks(), tensors()
  loss = twin('outer').rslad(nets, image, label, adv)
  loss.backward()
  grads, out = ours(METHODS['rslad']())
  p = np.asarray(jax.nn.softmax(nets.teacher(image).detach().numpy()))
  constant = np.mean(p * np.log1p(1e-5 / p))
  np.testing.assert_allclose(loss.item() - constant, out.loss / K, rtol=1e-9)
  scaled = jax.tree.map(lambda g: g / K, grads['student'])
  assert_close(scaled, twin('network').gradients(nets.student))


@pytest.mark.parametrize('progress, rate', [(0.5, 0.025), (0.8, 0.0025)])
def test_mtard_for_two_steps(progress, rate):
  """Its weight moves in the second step, and decays with the learning rate."""
  method = METHODS['mtard'](scale=1 / K)
  memory, state = method.init_memory(None, None, None, None), {}
  for step in (0, 1):
    grads, out = ours(method, step, memory=memory, progress=progress)
    memory = out.memory
    nets, (image, label, adv) = networks(), tensors(step)
    loss = twin('outer').mtard(
      nets, image, label, adv, state, rate=rate, floor=0.0
    )
    loss.backward()
    np.testing.assert_allclose(out.loss, loss.item(), rtol=TOLERANCE)
    assert_close(grads['student'], twin('network').gradients(nets.student))
    theirs = twin('network').averages(nets.student)
    assert_close(moved(out.batch_stats), moved(theirs))
    # As a difference: the weight hardly leaves 1/2.
    change = np.asarray(memory['clean_weight']) - 0.5
    np.testing.assert_allclose(
      change, state['clean'] - 0.5, rtol=TOLERANCE, atol=1e-15
    )
  assert abs(change) > 1e-6


def test_mtard_s_floor_hardly_moves_the_weight():
  """log(T + 1e-5) there is in the losses that its weight is made of."""
  weights = []
  for floor in (0.0, 1e-5):
    state = {}
    for step in (0, 1):
      args = networks(), *tensors(step), state
      twin('outer').mtard(*args, floor=floor)
    weights.append(state['clean'])
  assert 0 < abs(weights[1] - weights[0]) < 1e-5


@pytest.mark.parametrize('alpha', [0.0, 1.0])
def test_crd_for_two_steps(alpha):
  """Both banks, Z of the first batch and the projections, by the same rows."""
  import torch

  method = METHODS['crd'](alpha=alpha, negatives=16, feature_dim=8)
  outputs = [
    forward(*NETWORKS[name], jnp.asarray(IMAGE[0]), 'eval')
    for name in ('student', 'robust')
  ]
  heads = method.init_heads(jax.random.key(1), *outputs)
  memory = method.init_memory(jax.random.key(2), *outputs, ROWS)
  names = 'student', 'teacher'
  banks = {name: torch.tensor(np.asarray(memory[name])) for name in names}
  for step in (0, 1):
    view = batch(step)
    drawn = draw(keys(), memory['label'], jnp.asarray(LABEL), 16)
    grads, out = ours(method, step, heads, IMAGE[step], memory=memory)
    memory = out.memory

    nets, (image, label, _) = networks(), tensors(step)
    theirs = {
      name: tuple(
        torch.tensor(np.asarray(heads[name][part])).requires_grad_(True)
        for part in ('kernel', 'bias')
      )
      for name in names
    }
    rows = torch.tensor(np.asarray(jnp.column_stack([view.row, drawn])))
    loss = twin('crd').crd(
      nets, theirs, image, label, rows.long(), banks, alpha=alpha
    )
    loss.backward()
    np.testing.assert_allclose(out.loss, loss.item(), rtol=TOLERANCE)
    assert_close(grads['student'], twin('network').gradients(nets.student))
    for name in names:
      found = [weight.grad.numpy() for weight in theirs[name]]
      wanted = dict(zip(('kernel', 'bias'), found, strict=True))
      assert_close(grads['heads'][name], wanted)
      assert_close({'bank': memory[name]}, {'bank': banks[name].numpy()})
    np.testing.assert_allclose(memory['z'], banks['z'], rtol=TOLERANCE)
    theirs = twin('network').averages(nets.student)
    assert_close(moved(out.batch_stats), moved(theirs))


# method -> (how BatchNorm of the attacked student goes, start)
ATTACKS = {
  'ard': ('batch', 'uniform'),
  'rslad': ('eval', 'gaussian'),
  'iad': ('batch', 'uniform'),
  'adaad': ('eval', 'gaussian'),
  'mart': ('eval', 'gaussian'),
  'trades': ('eval', 'gaussian'),
  'mtard': ('eval', 'gaussian'),
  'igdm': ('eval', 'gaussian'),
  'saad': ('eval', 'gaussian'),
}
THREAT = 8 / 255, 2 / 255, 3  # radius, step, number of steps


@pytest.mark.parametrize('name', ATTACKS)
def test_the_adversarial_images(name):
  """Where the signs of all gradients are the same, so is every pixel."""
  mode, init = ATTACKS[name]
  ball = {'norm': 'linf', 'epsilon': THREAT[0], 'init': init}
  maximize = partial(ascent, step_size=THREAT[1], num_steps=THREAT[2], **ball)
  params = {'student': NETWORKS['student'][0], 'heads': {}}

  @jax.jit
  def attack(keys, view):
    first = start(keys, view.image, **ball)
    ctx = context(params, mode, keys)
    return first, METHODS[name]().perturb(keys, ctx, view, maximize)

  first, mine = attack(keys(), batch(0))
  inner, network = twin('inner'), twin('network')
  nets, (image, label, _) = networks(), tensors()
  begin = network.images(np.asarray(first))
  adv = inner.INNER[name](nets, image, label, begin, inner.Threat(*THREAT))
  theirs = network.from_images(adv)
  assert np.abs(theirs - IMAGE[0]).max() > 5.9 / 255  # it went three steps
  assert np.mean(np.abs(np.asarray(mine) - theirs) > 1e-9) < 1e-3

  if mode == 'eval':
    averages = network.averages(nets.student)
    assert not any(np.any(change) for change in moved(averages).values())
  else:  # theirs moved at each step; ours are those of before the attack
    path = [begin]
    for steps in (1, 2):
      threat = inner.Threat(*THREAT[:2], steps)
      path.append(inner.INNER[name](networks(), image, label, begin, threat))
    averages = averages_after(*path)
    assert_close(moved(network.averages(nets.student)), moved(averages))
