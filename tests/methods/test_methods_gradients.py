"""Methods on input gradients, and PeerAiD, against NumPy in float64."""

from functools import partial

from helpers.equations import ce_each, kl_each, linear, softmax
from helpers.steps import Tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import models
from jax_robust_kd.core import Batch, Context, Output
from jax_robust_kd.methods import METHODS
from jax_robust_kd.methods.igam import _Discriminator
from jax_robust_kd.methods.kdiga import _length
from jax_robust_kd.models import conv, layers

RNG = np.random.default_rng(1)
CLEAN = RNG.uniform(size=(6, 4, 4, 1))
ADV = np.clip(CLEAN + RNG.uniform(-0.1, 0.1, CLEAN.shape), 0, 1)
STUDENT, TEACHER, PEER = RNG.normal(size=(3, 16, 3))
LABEL = np.array([0, 1, 2, 0, 1, 2])
TARGET = np.eye(3)[LABEL]


def context(student=STUDENT, peer=PEER, heads=None, progress=1.0):
  """Linear networks whose running averages count the passes."""

  def network(weight, image, batch_stats=0):
    stats = jnp.asarray(batch_stats) + 1
    return Output(linear(jnp.asarray(weight), image), {}, stats)

  return Context(
    partial(network, student),
    partial(network, TEACHER),
    heads or {},
    jnp.asarray(progress),
    peer=partial(network, peer),
  )


def batch():
  return Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET))


def tempered(p_logits, q_logits, t):
  return t**2 * kl_each(p_logits / t, q_logits / t).mean()


def ce_slope(weight, x):
  """d CE / d x of a linear network: W (p - y)."""
  return (softmax(linear(weight, x)) - TARGET) @ weight.T


def probability_slope(weight, x):
  """d p_y / d x: p_y (w_y - W p)."""
  p = softmax(linear(weight, x))
  return p[np.arange(6), LABEL][:, None] * ((TARGET - p) @ weight.T)


def kdiga(student, x, a=1.0, b=1.0, t=1.0):
  s, teacher = linear(student, x), linear(TEACHER, x)
  distance = ce_slope(student, x) - ce_slope(TEACHER, x)
  length = np.sqrt((distance**2).sum(axis=1)).mean()
  return ce_each(s).mean() + a * tempered(teacher, s, t) + b * length


def peeraid(student, peer, held_student, held_peer, w):
  """L_S + L_P; each network enters the other's loss as `held_*`."""
  l1, l2, l3, t, g1, g2 = w
  sa, pa = linear(student, ADV), linear(peer, ADV)
  own = l1 * ce_each(sa).mean() + l2 * tempered(linear(held_peer, ADV), sa, t)
  own += l3 * tempered(linear(student, CLEAN), sa, t)
  peers = g1 * ce_each(pa).mean()
  return own + peers + g2 * kl_each(linear(held_student, ADV), pa).mean()


def numeric(function, at):
  """Central differences."""
  slope = np.zeros_like(at)
  for index in np.ndindex(at.shape):
    step = np.zeros_like(at)
    step[index] = 1e-5
    slope[index] = (function(at + step) - function(at - step)) / 2e-5
  return slope


def derived(method, **arguments):
  """Our loss, and its gradient by the student, the peer and the heads."""
  heads = METHODS[method](**arguments).init_heads(jax.random.key(0), None, None)
  heads = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), heads)

  def loss(student, peer, heads):
    out = METHODS[method](**arguments).loss(
      context(student, peer, heads), batch(), jnp.asarray(ADV)
    )
    return out.loss, out

  weights = jnp.asarray(STUDENT), jnp.asarray(PEER), heads
  gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
  return jax.jit(gradient)(*weights), heads


@pytest.fixture(autouse=True)
def double():
  with jax.enable_x64(True):
    yield


# Name and arguments; each has its own test of the loss and its gradient.
CASES = [
  ('kdiga', {}),
  ('kdiga', dict(kl_weight=0.3, gradient_weight=2.0, temperature=4.0)),
  ('igam', {}),
  ('peeraid', {}),
]


@pytest.mark.parametrize('arguments', [a for n, a in CASES if n == 'kdiga'])
def test_kdiga(arguments):
  (grads, out), _ = derived('kdiga', **arguments)
  own = partial(kdiga, x=ADV)
  if arguments:
    own = partial(own, a=0.3, b=2.0, t=4.0)
  np.testing.assert_allclose(out.loss, own(STUDENT), rtol=1e-10)
  np.testing.assert_allclose(grads[0], numeric(own, STUDENT), rtol=1e-6)
  assert out.batch_stats == 1


def test_kdiga_attacks_the_label_or_not_at_all():
  still = METHODS['kdiga']().perturb(None, context(), batch(), None)
  np.testing.assert_array_equal(still, CLEAN)
  seen = inner_problem(METHODS['kdiga'](adversarial=True))
  np.testing.assert_allclose(seen, ce_each(linear(STUDENT, ADV)), rtol=1e-10)


def test_length_of_nothing_has_no_slope():
  """sqrt alone would answer NaN where student and teacher agree."""
  np.testing.assert_array_equal(
    jax.grad(lambda x: _length(x).sum())(jnp.zeros((2, 4, 4, 1))), 0.0
  )
  x = jnp.asarray(CLEAN)
  flat = CLEAN.reshape(6, -1)
  np.testing.assert_allclose(_length(x), np.linalg.norm(flat, axis=1))


def inner_problem(method):
  """What the attack is told to maximize, at ADV."""
  seen = []

  class Result:
    adv = jnp.asarray(CLEAN)

  def maximize(rng, loss_fn, image):
    del rng
    np.testing.assert_array_equal(image, CLEAN)
    seen.append(loss_fn(jnp.asarray(ADV)))
    return Result

  method.perturb(None, context(), batch(), maximize)
  return seen[0]


def discriminate(heads, gradient):
  """The discriminator in loops: [B, 16] gradients -> [B] scores."""
  x = gradient.reshape(-1, 4, 4, 1).repeat(3, axis=3)
  x = x - x.mean(axis=(1, 2, 3), keepdims=True)
  x = x / np.sqrt((x**2).sum(axis=(1, 2, 3), keepdims=True))
  for i in range(2):
    kernel = np.asarray(heads[f'Conv_{i}']['kernel'])
    z = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    side = x.shape[1] // 2
    y = np.zeros((len(x), side, side, kernel.shape[3]))
    for r in range(side):
      for c in range(side):
        window = z[:, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4]
        y[:, r, c] = np.einsum('bijc,ijco->bo', window, kernel)
    mean = y.mean(axis=(1, 2, 3), keepdims=True)
    y = (y - mean) / np.sqrt(y.var(axis=(1, 2, 3), keepdims=True) + 1e-6)
    norm = heads[f'GroupNorm_{i}']
    y = y * np.asarray(norm['scale']) + np.asarray(norm['bias'])
    x = np.where(y > 0, y, 0.1 * y)
  last = heads['Dense_0']
  x = x.mean(axis=(1, 2)) @ np.asarray(last['kernel'])
  return (x + np.asarray(last['bias']))[:, 0]


def told_apart(heads, student):
  """Cross-entropy of the discriminator; 1 is the teacher."""
  own = discriminate(heads, probability_slope(student, ADV))
  wanted = discriminate(heads, probability_slope(TEACHER, ADV))
  wrong = np.log1p(np.exp(own)), np.log1p(np.exp(-wanted))
  return np.concatenate(wrong).mean()


SMALL = dict(layers=2, channels=3)


def test_igam():
  """The student's own minimum has - beta L_D, the discriminator's + L_D."""
  (grads, out), heads = derived('igam', beta=1.5, gamma=0.7, **SMALL)

  def square(student):
    d = probability_slope(student, ADV) - probability_slope(TEACHER, ADV)
    return (d**2).sum(axis=1).mean()

  def students(student):
    hard = ce_each(linear(student, ADV)).mean()
    return hard - 1.5 * told_apart(heads, student) + 0.7 * square(student)

  told = told_apart(heads, STUDENT)
  np.testing.assert_allclose(out.metrics['discriminator'], told, rtol=1e-9)
  expected = students(STUDENT) + 2.5 * told
  np.testing.assert_allclose(out.loss, expected, rtol=1e-9)
  np.testing.assert_allclose(grads[0], numeric(students, STUDENT), rtol=1e-5)
  for layer, name in (('Conv_0', 'kernel'), ('Dense_0', 'bias')):
    weight = np.asarray(heads[layer][name])

    def of_weight(w, layer=layer, name=name):
      changed = {**heads, layer: {**heads[layer], name: w}}
      return told_apart(changed, STUDENT)

    wanted = numeric(of_weight, weight)
    np.testing.assert_allclose(grads[2][layer][name], wanted, atol=1e-8)
  assert out.batch_stats == 1


def test_igam_matches_at_the_end_only():
  method = METHODS['igam'](begin=0.875, **SMALL)
  heads = method.init_heads(jax.random.key(0), None, None)

  def loss(progress):
    ctx = context(heads=heads, progress=progress)
    return method.loss(ctx, batch(), jnp.asarray(ADV)).loss

  hard = ce_each(linear(STUDENT, ADV)).mean()
  np.testing.assert_allclose(loss(0.874), hard, rtol=1e-6)
  assert abs(loss(0.875) - hard) > 1e-3


def test_igam_only_asks_the_attack_for_its_start():
  np.testing.assert_array_equal(inner_problem(METHODS['igam']()), np.zeros(6))


def test_igam_takes_grey_and_coloured_images_of_any_size():
  discriminator = _Discriminator(layers=2, channels=3)
  grey = jnp.asarray(RNG.normal(size=(2, 5, 7, 1)))
  heads = jax.jit(discriminator.init)(jax.random.key(0), grey)

  @jax.jit
  def summed(x):
    return jnp.sum(discriminator.apply(heads, x))

  of_colour = summed(grey.repeat(3, axis=3))
  np.testing.assert_allclose(summed(grey), of_colour, rtol=1e-10)
  assert jnp.isfinite(jax.jit(jax.grad(summed))(jnp.zeros_like(grey))).all()


WEIGHTS = dict(
  label=0.5, peer=1.5, clean=0.8, temperature=3.0, peer_label=0.7,
  peer_student=0.4,
)  # fmt: skip


@pytest.mark.parametrize('arguments', [{}, WEIGHTS])
def test_peeraid(arguments):
  w = tuple(arguments.values()) or (0.0, 1.0, 1.0, 5.0, 1.0, 0.1)
  (grads, out), _ = derived('peeraid', **arguments)
  value = peeraid(STUDENT, PEER, STUDENT, PEER, w)
  np.testing.assert_allclose(out.loss, value, rtol=1e-10)
  by_student = numeric(lambda s: peeraid(s, PEER, STUDENT, PEER, w), STUDENT)
  by_peer = numeric(lambda p: peeraid(STUDENT, p, STUDENT, PEER, w), PEER)
  np.testing.assert_allclose(grads[0], by_student, rtol=1e-5, atol=1e-9)
  np.testing.assert_allclose(grads[1], by_peer, rtol=1e-5, atol=1e-9)
  assert (out.batch_stats, out.peer_stats) == (2, 1)


def test_peeraid_attacks_where_the_student_leaves_its_peer():
  seen = inner_problem(METHODS['peeraid']())
  expected = kl_each(linear(PEER, CLEAN), linear(STUDENT, ADV))
  np.testing.assert_allclose(seen, expected, rtol=1e-10)


def slopes_of_kdiga():
  """d loss / d weights of a real network, whose gradients are by hand."""
  module = Tiny(width=4, num_classes=3)
  image = jnp.asarray(CLEAN[:4].repeat(2, axis=1).repeat(2, axis=2))
  variables = models.init(module, jax.random.key(0), image)
  teacher = models.init(module, jax.random.key(1), image)

  def loss(params):
    given = {'params': params, 'batch_stats': variables['batch_stats']}
    ctx = Context(
      partial(models.forward, module, given, mode='train'),
      partial(models.forward, module, teacher, mode='eval'),
      {},
      jnp.zeros(()),
    )
    view = Batch(image, jnp.asarray(TARGET[:4]))
    return METHODS['kdiga'](gradient_weight=5.0).loss(ctx, view, image).loss

  return jax.jit(jax.grad(loss))(variables['params'])


@jax.enable_x64(False)
def test_a_gradient_of_a_gradient_passes_our_convolution_and_batchnorm(
  monkeypatch,
):
  """Against autodiff of the plain operations."""
  calls, by_hand = [], conv._conv
  monkeypatch.setattr(conv, '_conv', lambda *a: calls.append(a) or by_hand(*a))
  ours = slopes_of_kdiga()
  assert calls
  monkeypatch.setattr(conv, '_conv', None)  # a call would fail
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(layers, 'batch_normalize', layers._batch_normalize)
  plain = slopes_of_kdiga()
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
