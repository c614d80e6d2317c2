"""Methods that doubt a teacher or ask two, against equations in NumPy float64.

The NumPy functions are written from the papers and the official codes' facts;
gradients are central differences of them.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.attacks import ascent
from jax_robust_kd.config import load_config
from jax_robust_kd.core import AXIS, Batch, Context, Output, UserError
from jax_robust_kd.methods import METHODS
from jax_robust_kd.threat import parse_radius

RNG = np.random.default_rng(162)  # the teacher errs in every way
X = RNG.uniform(size=(6, 2, 2, 1))
ADV = np.clip(X + RNG.uniform(-0.3, 0.3, X.shape), 0, 1)
STUDENT, ROBUST, CLEAN = RNG.normal(size=(3, 4, 3)) * 2
Y = np.array([0, 1, 2, 0, 1, 2])
# Mixed: a hard label is the argmax.
ONE_HOT = np.eye(3)[Y]
TARGET = 0.8 * ONE_HOT + 0.2 * np.eye(3)[(Y + 1) % 3]
EACH = np.arange(6)


def linear(weight, image):
  return image.reshape(len(image), -1) @ weight


def square(weight, image):
  """The teachers: not linear, so that linearising them is an error."""
  return linear(weight, image) ** 2


def network(function, weight, image, batch_stats=0):
  return Output(function(weight, image), {}, batch_stats + 1)


def context(student, progress, memory=None):
  """Student, teachers; running averages count the passes they have seen."""
  robust, clean = (
    partial(network, square, jnp.asarray(w)) for w in (ROBUST, CLEAN)
  )
  return Context(
    partial(network, linear, student),
    robust,
    {},
    progress=jnp.asarray(progress),
    teachers={'robust': robust, 'clean': clean},
    memory=memory,
  )


def log_softmax(z):
  z = z - z.max(axis=1, keepdims=True)
  return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def softmax(z):
  return np.exp(log_softmax(z))


def kl(p, q, t=1.0):
  """KL(softmax(p / t) || softmax(q / t)), one per image."""
  p, q = log_softmax(p / t), log_softmax(q / t)
  return (np.exp(p) * (p - q)).sum(axis=1)


def ce(logits):
  return -(TARGET * log_softmax(logits)).sum(axis=1)


T, TA = square(ROBUST, X), square(ROBUST, ADV)
C, CA = square(CLEAN, X), square(CLEAN, ADV)
T_OPPOSITE = square(ROBUST, 2 * X - ADV)
TRUST = softmax(TA)[EACH, Y] ** 0.1


def both(w):
  """Student's logits on x and on x'."""
  return linear(w, X), linear(w, ADV)


def iad1(w, trust=TRUST, teacher=1.0, weight=1.0, t=1.0):
  s, sa = both(w)
  value = teacher * t**2 * kl(T, sa, t) + (1 - trust) * kl(s, sa)
  return (weight * value + (1 - weight) * ce(s)).mean()


def iad2(w, trust=TRUST, t=1.0):
  s, sa = both(w)
  value = trust * t**2 * kl(TA, sa, t) + (1 - trust) * kl(s, sa)
  value = 0.5 * value + 0.25 * t**2 * kl(CA, sa, t) + 0.25 * ce(sa)
  return value.mean()


def adaiad(w, trust=TRUST, teacher=1.0, alpha=1.0):
  s, sa = both(w)
  value = teacher * 900 * kl(TA, sa, 30.0) + (1 - trust) * kl(s, sa)
  return (alpha * value + (1 - alpha) * ce(s)).mean()


def akd2(w, robust=0.6, clean=0.1, t=2.0):
  sa = linear(w, ADV)
  value = robust * t**2 * kl(TA, sa, t) + clean * t**2 * kl(CA, sa, t)
  return (value + (1 - robust - clean) * ce(sa)).mean()


def mtard_step(memory, rate=0.025):
  """The official rule: the weight and first losses after a step."""
  s, sa = both(STUDENT)
  now = np.array([kl(TA, sa).mean(), kl(C, s).mean()])
  first = now if memory is None else memory['first']
  weight = 0.5 if memory is None else memory['clean_weight']
  relative = now / first
  share = relative[1] / (relative[0] + relative[1])
  return weight - rate * (weight - share), first


def mtard(w, memory=None, rate=0.025, scale=1.0):
  s, sa = both(w)
  weight, _ = mtard_step(memory, rate)
  return scale * ((1 - weight) * kl(TA, sa).mean() + weight * kl(C, s).mean())


def gradient_term(w):
  """IGDM's, one per image."""
  minus = linear(w, 2 * X - ADV)
  return kl(TA - T_OPPOSITE, linear(w, ADV) - minus)


def igdm(w, host, alpha=5.0, progress=0.5):
  s, sa = both(w)
  hosts = {
    'adaad': lambda: kl(TA, sa).mean(),
    'rslad': lambda: (5 / 6 * kl(T, sa) + 1 / 6 * kl(T, s)).mean(),
    'ard': lambda: 900 * kl(T, sa, 30.0).mean(),
    'iad': lambda: iad1(w),
    'adaiad': lambda: adaiad(w),
  }
  return hosts[host]() + alpha * progress * gradient_term(w).mean()


def saad(w, alpha=1.0, beta=0.0, scale=5.0, order=1.0):
  s, sa = both(w)
  p = softmax(TA)
  if order == 1.0:
    h = -(p * np.log(p)).sum(axis=1)
  else:
    h = np.log((p**order).sum(axis=1)) / (1 - order)
  weight = scale * (h - h.min())
  share = (weight - weight.min()) / (weight.max() - weight.min())
  value = weight * (kl(TA, sa) + alpha * 0.5 * gradient_term(w))
  return (value + beta * (1 - share) * kl(T, s)).mean()


def corrected(logits):
  """Swaps the highest logit and the label's, image by image."""
  logits = logits.copy()
  for row, label in zip(logits, Y, strict=True):
    top = row.argmax()
    row[label], row[top] = row[top], row[label]
  return logits


WRONG, WRONG_ADV = T.argmax(axis=1) != Y, TA.argmax(axis=1) != Y


def dgad(w, beta=0.1):
  s, sa = both(w)
  matched = np.where(WRONG, kl(corrected(T), s), kl(corrected(TA), sa))
  gap = ((softmax(sa) - softmax(s)) ** 2).sum(axis=1)
  return (matched + beta * gap).mean()


II = dict(
  version='II', robust_weight=0.5, clean_weight=0.25, begin=0.2,
  weigh_teacher=True,
)  # fmt: skip
MEMORY = {
  'clean_weight': np.asarray(0.3),
  'first': np.array([2.0, 0.5]),
}
# method, arguments, share of the training, memory, loss by hand, passes
CASES = [
    ('iad', {}, 0.5, None, iad1, 2),
    ('iad', {}, 0.29, None, partial(iad1, trust=1.0), 2),
    ('iad', dict(weigh_teacher=True), 0.3, None,
     partial(iad1, teacher=TRUST), 2),
    ('iad', dict(robust_weight=0.7, temperature=3.0, beta=0.4), 0.5, None,
     partial(iad1, trust=TRUST**4, weight=0.7, t=3.0), 2),
    ('iad', II, 0.25, None, iad2, 2),
    ('iad', {**II, 'temperature': 2.0}, 0.1, None,
     partial(iad2, trust=1.0, t=2.0), 2),
    ('adaiad', {}, 0.5, None, adaiad, 2),
    ('adaiad', dict(alpha=0.6, weigh_teacher=True), 0.5, None,
     partial(adaiad, teacher=TRUST, alpha=0.6), 2),
    ('adaiad', {}, 0.1, None, partial(adaiad, trust=1.0), 2),
    ('adaiad', dict(scale=0.1), 0.5, None, lambda w: 0.1 * adaiad(w), 2),
    ('akd2', {}, 0.5, None, akd2, 1),
    ('akd2', dict(robust_weight=0.5, clean_weight=0.25, temperature=1.0), 0.5,
     None, partial(akd2, robust=0.5, clean=0.25, t=1.0), 1),
    ('mtard', {}, 0.0, None, mtard, 2),
    ('mtard', {}, 0.5, MEMORY, partial(mtard, memory=MEMORY), 2),
    ('mtard', dict(scale=0.1, weight_lr=0.2), 0.9, MEMORY,
     partial(mtard, memory=MEMORY, rate=0.002, scale=0.1), 2),
    ('igdm', {}, 0.5, None, partial(igdm, host='adaad'), 2),
    ('igdm', dict(host='rslad', alpha=2.0), 0.25, None,
     partial(igdm, host='rslad', alpha=2.0, progress=0.25), 3),
    ('igdm', dict(host='ard'), 0.5, None, partial(igdm, host='ard'), 2),
    ('igdm', dict(host='iad'), 0.5, None, partial(igdm, host='iad'), 3),
    ('igdm', dict(host='adaiad'), 0.5, None, partial(igdm, host='adaiad'), 3),
    ('saad', {}, 0.5, None, saad, 2),
    ('saad', dict(alpha=10.0, beta=0.7, entropy_scale=2.0, order=2.0), 0.5,
     None, partial(saad, alpha=10.0, beta=0.7, scale=2.0, order=2.0), 3),
    ('dgad', {}, 0.5, None, dgad, 2),
    ('dgad', dict(beta=3.0), 0.5, None, partial(dgad, beta=3.0), 2),
]  # fmt: skip
NAMES = sorted({case[0] for case in CASES})


def run(name, arguments, progress, memory, student=STUDENT, parts=1, adv=ADV):
  """Returns the outputs on `parts` devices, and the gradients by `student`."""
  method = METHODS[name](**arguments)
  if memory is None:
    memory = method.init_memory(None, None, None, 0)
  memory = jax.tree.map(lambda m: jnp.asarray(m, float), memory)

  def on_device(weight, image, target, adv):
    ctx = context(weight, progress, memory)
    out = method.loss(ctx, Batch(image, target), adv)
    return out.loss, out

  def step(weight, *part):
    grad, out = jax.grad(on_device, has_aux=True)(weight, *part)
    return jax.lax.pmean(grad, AXIS), out

  images = [
    jnp.asarray(v).reshape(parts, -1, *v.shape[1:]) for v in (X, TARGET, adv)
  ]
  mapped = jax.vmap(step, in_axes=(None, 0, 0, 0), axis_name=AXIS)
  return jax.device_get(mapped(jnp.asarray(student), *images))


def numeric_gradient(function, weight):
  grad = np.zeros_like(weight)
  for index in np.ndindex(weight.shape):
    step = np.zeros_like(weight)
    step[index] = 1e-5
    grad[index] = (function(weight + step) - function(weight - step)) / 2e-5
  return grad


@pytest.mark.parametrize(
  'name,arguments,progress,memory,expected,passes', CASES
)
def test_loss_and_gradient_equal_the_equation(
  name, arguments, progress, memory, expected, passes
):
  with jax.enable_x64(True):
    grad, out = run(name, arguments, progress, memory)
  np.testing.assert_allclose(out.loss[0], expected(STUDENT), rtol=1e-9)
  assert out.batch_stats[0] == passes
  numeric = numeric_gradient(expected, STUDENT)
  assert np.abs(numeric).max() > 1e-3, 'the student must receive a gradient'
  np.testing.assert_allclose(grad[0], numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', NAMES)
def test_images_without_a_perturbation_give_finite_numbers(name):
  """x' = x: no difference to match, and all weights of one image equal."""
  grad, out = run(name, {}, 0.9, None, adv=X)
  assert np.isfinite(grad).all() and np.isfinite(out.loss).all()


@pytest.mark.parametrize(
  'name,arguments',
  [('mtard', {}), ('saad', dict(beta=0.7)), ('iad', II), ('dgad', {})],
)
def test_two_devices_are_one(name, arguments):
  with jax.enable_x64(True):
    grad, out = run(name, arguments, 0.5, None)
    grads, outs = run(name, arguments, 0.5, None, parts=2)
  np.testing.assert_allclose(grads[0], grad[0], rtol=1e-9)
  np.testing.assert_allclose(outs.loss.mean(), out.loss[0], rtol=1e-9)
  for whole, split in zip(
    jax.tree.leaves(out.memory), jax.tree.leaves(outs.memory), strict=True
  ):
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-9)
    np.testing.assert_array_equal(split[0], split[1])


@pytest.mark.parametrize('progress,decayed', [(0.0, 1), (0.72, 0.1), (1, 1e-3)])
def test_mtard_hands_on_its_weight_and_first_losses(progress, decayed):
  with jax.enable_x64(True):
    for memory in (None, MEMORY):
      _, out = run('mtard', {}, progress, memory)
      weight, first = mtard_step(memory, 0.025 * decayed)
      np.testing.assert_allclose(out.memory['clean_weight'][0], weight)
      np.testing.assert_allclose(out.memory['first'][0], first)


def test_dgad_meets_all_kinds_of_teacher_mistakes():
  """Otherwise the cases above would not tell its branches apart."""
  kinds = {(bool(a), bool(b)) for a, b in zip(WRONG, WRONG_ADV, strict=True)}
  assert len(kinds) == 4, "right or wrong, on x and on its attacked x'"


def mismatch(image):
  return kl(square(ROBUST, image), linear(STUDENT, image))


def student_ce(image):
  return ce(linear(STUDENT, image))


def linearised(image, labels=ONE_HOT, by=1.0):
  """KL of the teacher to first order: d(z^2) = 2 z dz of its logits."""
  push = 2 * linear(ROBUST, X) * linear(ROBUST, image - X)
  return kl(T + by * labels * push, linear(STUDENT, image))


INNER = [
    ('iad', {}, student_ce),
    ('iad', II, student_ce),
    ('akd2', {}, student_ce),
    ('mtard', {}, student_ce),
    ('adaiad', {}, mismatch),
    ('dgad', {}, mismatch),
    ('igdm', {}, mismatch),
    ('igdm', dict(host='rslad'),
     lambda image: kl(T, linear(STUDENT, image))),
    ('igdm', dict(host='iad'), student_ce),
    ('igdm', dict(host='adaiad'), mismatch),
    ('saad', {}, linearised),
    ('saad', dict(correction=0.4), partial(linearised, by=0.4)),
    ('saad', dict(corrected='all'),
     partial(linearised, labels=np.ones((6, 3)))),
]  # fmt: skip


@pytest.mark.parametrize('name,arguments,expected', INNER)
def test_inner_problem_and_its_gradient(name, arguments, expected):
  seen = []

  class Result:
    adv = ADV

  def maximize(rng, loss_fn, image):
    del rng
    np.testing.assert_array_equal(image, X)
    at = jnp.asarray(ADV)
    seen.append(loss_fn(at))
    seen.append(jax.grad(lambda x: loss_fn(x).sum())(at))
    return Result

  with jax.enable_x64(True):
    batch = Batch(jnp.asarray(X), jnp.asarray(TARGET))
    ctx = context(jnp.asarray(STUDENT), 0.5)
    adv = METHODS[name](**arguments).perturb(None, ctx, batch, maximize)
  assert adv is ADV
  np.testing.assert_allclose(seen[0], expected(ADV), rtol=1e-9)
  slope = numeric_gradient(lambda x: expected(x).sum(), ADV)
  np.testing.assert_allclose(seen[1], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dataset', ['cifar10', 'cifar100'])
def test_the_radius_is_that_of_the_config(name, dataset):
  """Never radius 2/255 and steps of 8/255, as in some published scripts."""
  c = load_config(f'configs/{name}.py:{dataset}')
  assert (c.train_attack.epsilon, c.train_attack.step_size) == (
    '8/255',
    '2/255',
  )
  assert (c.train_attack.norm, c.train_attack.num_steps) == ('linf', 10)
  fields = c.method.to_dict()
  method = METHODS[fields.pop('name')](**fields)
  batch = Batch(jnp.asarray(0.4 + 0.2 * X), jnp.asarray(TARGET))
  maximize = partial(
    ascent,
    norm='linf',
    epsilon=parse_radius('train_attack.epsilon', c.train_attack.epsilon),
    step_size=parse_radius('train_attack.step_size', c.train_attack.step_size),
    num_steps=10,
    init='zero',
  )
  rng = jax.random.split(jax.random.key(0), 6)
  ctx = context(jnp.asarray(STUDENT), 0.5)
  adv = method.perturb(rng, ctx, batch, maximize)
  distance = jnp.abs(adv - batch.image).max(axis=(1, 2, 3))
  np.testing.assert_allclose(distance, 8 / 255, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_config_of_digits_keeps_its_small_budget(name):
  assert (Path(__file__).parents[2] / 'configs' / f'{name}.py').exists()
  c, base = (
    load_config(f'configs/{n}.py:digits') for n in (name, 'advfunmatch')
  )
  assert c.train_attack == base.train_attack
  assert c.optimizer.epochs == base.optimizer.epochs
  assert c.data.batch_size == base.data.batch_size
  fields = c.method.to_dict()
  asked = METHODS[fields.pop('name')](**fields).teachers
  assert c.teacher.config and (c.clean_teacher.config or 'clean' not in asked)


@pytest.mark.parametrize(
  'name,arguments,words',
  [
    ('iad', dict(version='III'), "method.version='III'.*I, II"),
    ('iad', dict(version='II'), 'method.clean_weight=0.0 .*0.25'),
    ('iad', dict(clean_weight=0.2), 'method.clean_weight=0.2'),
    ('igdm', dict(host='kd'), "method.host='kd'.*adaad"),
    ('saad', dict(corrected='none'), "method.corrected='none'.*label, all"),
  ],
)
def test_a_wrong_keyword_is_named(name, arguments, words):
  with pytest.raises(UserError, match=words):
    METHODS[name](**arguments)
