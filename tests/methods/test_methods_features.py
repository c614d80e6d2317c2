"""Methods that match features, against their equations in NumPy float64."""

from functools import cache, partial

from helpers.equations import LABEL, TARGET, ce, kl, softmax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.core import (
  AXIS,
  Ascent,
  Batch,
  Context,
  Output,
  UserError,
  no_attack,
)
from jax_robust_kd.methods import METHODS
from jax_robust_kd.methods.crd import crd_loss, draw
from jax_robust_kd.methods.features import same_size, unit
from jax_robust_kd.methods.gacd import WEIGHTS, infonce, nce
from jax_robust_kd.methods.inner_problems import cross_entropy_label

RNG = np.random.default_rng(2)
CLEAN = RNG.uniform(size=(6, 4, 4, 1))
ADV = np.clip(CLEAN + RNG.uniform(-0.1, 0.1, CLEAN.shape), 0, 1)
ROWS, DIM = 9, 4  # training images; numbers in a projection
ROW = np.array([3, 8, 0, 5, 1, 7])
KNOWN = np.array([2, 1, 0, -1, 1, 0, -1, 2, 1], np.int32)  # labels of rows


def toy(width, channels):
  return {
    'map1': RNG.normal(size=(2, channels)),
    'map2': RNG.normal(size=(2, channels + 1)),
    'pool': RNG.normal(size=(16, width)),
    'out': RNG.normal(size=(width, 3)),
  }


STUDENT, TEACHER = toy(3, 2), toy(5, 3)


def network(p, x, shrink=False):
  """Features of all kinds; NumPy or JAX. A teacher's second map is smaller."""
  y = x.reshape(-1, 2, 2, 2, 2, 1).mean((2, 4)) if shrink else x
  pooled = x.reshape(len(x), -1) @ p['pool']
  return {
    'stem': x,
    'stage1': x * p['map1'][0] + p['map1'][1],
    'stage2': y * p['map2'][0] + p['map2'][1],
    'pooled': pooled,
    'logits': pooled @ p['out'],
  }


def output(p, image, batch_stats=0, shrink=False):
  found = network(p, image, shrink)
  return Output(found.pop('logits'), found, batch_stats + 1)


teacher = partial(network, TEACHER, shrink=True)


def maximize(rng, loss_fn, image):
  del rng, loss_fn, image
  return Ascent(jnp.asarray(ADV), jnp.asarray(ADV)[None])


def made(name, **arguments):
  """Returns a method, its weights and its memory at the start."""
  method = METHODS[name](**arguments)
  image = jnp.asarray(CLEAN)
  outputs = output(STUDENT, image), output(TEACHER, image, shrink=True)
  heads = method.init_heads(jax.random.key(0), *outputs)
  memory = method.init_memory(jax.random.key(1), *outputs, ROWS)
  # NumPy from here on, so that the references stay NumPy.
  weights = jax.tree.map(np.asarray, {'student': STUDENT, 'heads': heads})
  return method, weights, jax.tree.map(np.array, memory)


def step(method, weights, memory, devices=1, row=ROW, slope=True):
  """Returns loss, gradient if asked and memory, the batch cut over devices."""

  def on_device(image, adv, target, row, rng):
    def loss(weights):
      ctx = Context(
        partial(output, weights['student']),
        partial(output, TEACHER, shrink=True),
        weights['heads'],
        jnp.zeros(()),
        memory=memory,
        rng=rng,
      )
      out = method.loss(ctx, Batch(image, target, row), adv)
      assert out.batch_stats == 1  # one pass moves the running averages
      return out.loss, out.memory

    if slope:
      (value, after), grad = jax.value_and_grad(loss, has_aux=True)(weights)
    else:
      (value, after), grad = loss(weights), None
    return *jax.lax.pmean((value, grad), AXIS), after

  whole = Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET), jnp.asarray(row))
  adv = method.perturb(None, None, whole, maximize)
  rng = jax.random.split(jax.random.key(2), 6)
  weights, memory = jax.tree.map(jnp.asarray, (weights, memory))
  parts = whole.image, adv, whole.target, whole.row, rng
  parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), parts)
  mapped = jax.vmap(on_device, axis_name=AXIS, out_axes=None)
  return jax.tree.map(np.asarray, jax.jit(mapped)(*parts))


# References, each from the paper's equation or the official code's behaviour:
# (weights, memory, images seen) -> loss.


def length_one(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def projected(heads, name, found):
  head = heads[name]
  return length_one(found['pooled'] @ head['kernel'] + head['bias'])


def with_logits(found, term, x, beta, gamma=1.0, alpha=0.0):
  hint = 16 * kl(teacher(x)['logits'], found['logits'], 4.0)
  return gamma * ce(found['logits']) + alpha * hint + beta * term


def rrm(weights, memory, x, beta=0.005):
  found, head = network(weights['student'], x), weights['heads']
  pooled = found['pooled'] @ head['kernel'] + head['bias']
  cosine = length_one(pooled) * length_one(teacher(x)['pooled'])
  return beta * ce(found['logits']) - cosine.sum(1).mean()


def at(weights, memory, x, beta=1000.0, **logits):
  found, target = network(weights['student'], x), teacher(x)

  def attention(maps):
    squares = (maps**2).mean(-1).reshape(6, -1)
    return squares / np.sqrt((squares**2).sum(1, keepdims=True))

  small = found['stage2'].reshape(6, 2, 2, 2, 2, 3).mean((2, 4))
  pairs = (found['stage1'], target['stage1']), (small, target['stage2'])
  term = sum(((attention(s) - attention(t)) ** 2).mean() for s, t in pairs)
  return with_logits(found, term, x, beta, **logits)


def fitnets(weights, memory, x, stage='stage2', beta=100.0, **logits):
  found, head = network(weights['student'], x), weights['heads']
  maps = found[stage]
  if stage == 'stage2':
    maps = maps.reshape(6, 2, 2, 2, 2, 3).mean((2, 4))
  pixels = np.einsum('bhwc,cd->bhwd', maps, head['kernel']).reshape(
    -1, len(head['bias'])
  )
  pixels = (pixels - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5)
  pixels = np.maximum(pixels * head['scale'] + head['bias'], 0)
  term = ((pixels - teacher(x)[stage].reshape(pixels.shape)) ** 2).mean()
  return with_logits(found, term, x, beta, **logits)


def rkd(weights, memory, x, distance=25.0, angle=50.0, beta=1.0, **logits):
  found = network(weights['student'], x)

  def relations(e):
    far = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
    cosines = np.zeros((6, 6, 6))
    for i, j, k in np.ndindex(6, 6, 6):
      if i not in (j, k):
        dot = (e[j] - e[i]) @ (e[k] - e[i])
        cosines[i, j, k] = dot / far[i, j] / far[i, k]
    return far / far[far > 0].mean(), cosines

  def huber(a, b):
    gap = np.abs(a - b)
    return np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()

  far, cosines = zip(
    relations(found['pooled']), relations(teacher(x)['pooled']), strict=True
  )
  term = distance * huber(*far) + angle * huber(*cosines)
  return with_logits(found, term, x, beta, **logits)


def own_and_drawn(row, known, negatives):
  rng = jax.random.split(jax.random.key(2), 6)  # as in `step`
  rows = draw(rng, known, jnp.asarray(LABEL), negatives)
  return np.concatenate([row[:, None], np.asarray(rows)], 1)


@cache
def drawn(negatives):
  return own_and_drawn(ROW, KNOWN, negatives)


def crd(weights, memory, x, negatives=7, tau=0.07, beta=0.8, **logits):
  """By the official code; Z of the first batch is a constant."""
  rows = drawn(negatives)
  found = network(weights['student'], x)
  sides = {'student': found, 'teacher': teacher(x)}
  v = {k: projected(weights['heads'], k, f) for k, f in sides.items()}
  term = 0.0
  for k, (live, bank) in enumerate(
    [('student', 'teacher'), ('teacher', 'student')]
  ):
    past = memory[bank][rows]
    out = np.exp(np.einsum('bd,bnd->bn', v[live], past) / tau)
    out = out / memory['z'][k]
    noise = negatives / ROWS
    own = np.log(out[:, 0] / (out[:, 0] + noise + 1e-7))
    rest = np.log(noise / (out[:, 1:] + noise + 1e-7))
    term -= (own.sum() + rest.sum()) / 6
  return with_logits(found, term, x, beta, **logits)


def gacd(weights, memory, x, other=None, loss='nce', weight='probability',
         power=1.0, direction='teacher', classifier='joint', tau=0.07,
         beta=0.8, mean=None):  # fmt: skip
  """`mean` is that of e^score over negatives, by anchor: a constant."""
  heads = weights['heads']
  found = network(weights['student'], x)
  target = teacher(x if other is None else other)
  s = projected(heads, 'student', found)
  t = projected(heads, 'teacher', target)
  p = softmax(target['logits'])
  right = p[np.arange(6), LABEL]
  w = {
    'probability': right**power,
    'correct': (p.argmax(1) == LABEL) * 1.0,
    'one': np.ones(6),
  }[weight]
  total = 0.0
  for name, a, b in (('teacher', t, s), ('student', s, t)):
    if name == 'student' and direction == 'teacher':
      continue
    label = np.concatenate([LABEL, memory.get('label', np.zeros(0, int))])
    key = 'student' if name == 'teacher' else 'teacher'
    all_b = np.concatenate([b, memory.get(key, np.zeros((0, DIM)))])
    for i in range(6):
      e = np.exp(all_b @ a[i] / tau)
      rest = e[(label != LABEL[i]) & (label >= 0)]
      if loss == 'infonce':
        each = -np.log(e[i] / (e[i] + rest.sum()))
      else:
        noise = len(rest) * mean[name]
        each = -np.log(e[i] / (e[i] + noise))
        each -= np.log(noise / (rest + noise)).sum()
      total += w[i] / w.mean() * each / 6
  return (classifier == 'joint') * ce(found['logits']) + beta * total


def gacd_means(weights, memory, x, other=None, tau=0.07):
  """The mean of e^score over all negatives, from the weights at the start."""
  sides = {
    'student': network(weights['student'], x),
    'teacher': teacher(x if other is None else other),
  }
  v = {k: projected(weights['heads'], k, f) for k, f in sides.items()}
  found = {}
  for a, b in (('teacher', 'student'), ('student', 'teacher')):
    if memory and b not in memory:
      continue
    label = np.concatenate([LABEL, memory.get('label', np.zeros(0, int))])
    all_b = np.concatenate([v[b], memory.get(b, np.zeros((0, DIM)))])
    differ = (label != LABEL[:, None]) & (label >= 0)
    found[a] = np.exp(v[a] @ all_b.T / tau)[differ].mean()
  return found


def filled(memory):
  """A memory as some steps leave it: labels known, but for two rows."""
  rng = np.random.default_rng(3)
  for name, value in memory.items():
    if name == 'label':
      memory[name] = KNOWN
    elif name == 'z':
      memory[name] = np.array([20.0, 30.0])
    else:
      memory[name] = length_one(rng.normal(size=value.shape))
  return memory


LOGITS = dict(gamma=0.5, alpha=0.7)

# method, arguments, reference, its arguments, devices
CASES = [
    ('rrm', {}, rrm, {}, 2),
    ('rrm', dict(beta=0.3), rrm, dict(beta=0.3), 1),
    ('at', {}, at, {}, 2),
    ('at', dict(on='adv', beta=9.0, **LOGITS), at, dict(beta=9.0, **LOGITS), 2),
    ('fitnets', {}, fitnets, {}, 1),
    ('fitnets', dict(hint='stage1', on='adv', **LOGITS), fitnets,
     dict(stage='stage1', **LOGITS), 1),
    ('rkd', {}, rkd, {}, 2),
    ('rkd', dict(distance=3.0, angle=2.0, beta=0.5, on='adv', **LOGITS), rkd,
     dict(distance=3.0, angle=2.0, beta=0.5, **LOGITS), 1),
    ('crd', dict(negatives=7, feature_dim=DIM), crd, {}, 2),
    ('crd', dict(negatives=7, feature_dim=DIM, tau=0.5, beta=2.0, on='adv',
                 **LOGITS), crd, dict(tau=0.5, beta=2.0, **LOGITS), 1),
    ('gacd', dict(tau=0.5), gacd, dict(tau=0.5), 2),
    ('gacd', dict(views='V2', tau=0.5, power=0.1), gacd,
     dict(other=CLEAN, tau=0.5, power=0.1), 2),
    ('gacd', dict(views='V3', weight='correct', beta=3.0), gacd,
     dict(weight='correct', beta=3.0), 1),
    ('gacd', dict(views='V4', weight='one', loss='infonce', tau=0.2), gacd,
     dict(weight='one', loss='infonce', tau=0.2), 2),
    ('gacd', dict(direction='both', classifier='none', tau=0.5), gacd,
     dict(direction='both', classifier='none', tau=0.5), 2),
    ('gacd', dict(negatives='bank', tau=0.5), gacd, dict(tau=0.5), 2),
    ('gacd', dict(negatives='bank', direction='both', loss='infonce'), gacd,
     dict(direction='both', loss='infonce'), 1),
]  # fmt: skip


@pytest.mark.parametrize('name,arguments,reference,known,devices', CASES)
def test_loss_and_gradient(name, arguments, reference, known, devices):
  """Central differences of the NumPy loss are the reference's gradient."""
  with jax.enable_x64(True):
    if name == 'gacd':
      arguments = dict(arguments, feature_dim=DIM)
    method, weights, memory = made(name, **arguments)
    memory = filled(memory)
    x = CLEAN if method.perturb is no_attack else ADV
    if known.get('loss', 'nce') == 'nce' and name == 'gacd':
      where = {k: known[k] for k in ('other', 'tau') if k in known}
      known = dict(known, mean=gacd_means(weights, memory, x, **where))
    loss, grad, _ = step(method, weights, memory, devices)
    value = reference(weights, memory, x, **known)
    np.testing.assert_allclose(loss, value, rtol=1e-9)
    leaves, tree = jax.tree.flatten(weights)
    for place, (leaf, slope) in enumerate(
      zip(leaves, jax.tree.leaves(grad), strict=True)
    ):
      for index in np.ndindex(leaf.shape):
        moved = []
        for size in (1e-5, -1e-5):
          changed = list(leaves)
          changed[place] = leaf.copy()
          changed[place][index] += size
          there = jax.tree.unflatten(tree, changed)
          moved.append(reference(there, memory, x, **known))
        expected = (moved[0] - moved[1]) / 2e-5
        np.testing.assert_allclose(slope[index], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['at', 'fitnets', 'rkd', 'crd'])
def test_both_networks_see_clean_or_attacked_images(name):
  assert METHODS[name]().perturb is no_attack
  assert METHODS[name](on='adv').perturb is cross_entropy_label


@pytest.mark.parametrize(
  'views,inner',
  [('V1', cross_entropy_label), ('V2', cross_entropy_label), ('V3', no_attack)],
)
def test_views_of_gacd(views, inner):
  assert METHODS['gacd'](views=views).perturb is inner


def test_view_4_attacks_the_teacher():
  seen = []

  def ascend(rng, loss_fn, image):
    del rng
    seen.append(loss_fn(jnp.asarray(ADV)))
    return Ascent(image, image[None])

  ctx = Context(None, partial(output, TEACHER, shrink=True), {}, jnp.zeros(()))
  batch = Batch(jnp.asarray(CLEAN), jnp.asarray(TARGET))
  METHODS['gacd'](views='V4').perturb(None, ctx, batch, ascend)
  expected = -np.log(softmax(teacher(ADV)['logits'])[np.arange(6), LABEL])
  np.testing.assert_allclose(seen[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
  'name,key,value',
  [
    ('at', 'on', 'both'),
    ('fitnets', 'on', 'x'),
    ('rkd', 'on', ''),
    ('crd', 'on', 'robust'),
    ('gacd', 'views', 'V5'),
    ('gacd', 'loss', 'kl'),
    ('gacd', 'weight', 'two'),
    ('gacd', 'negatives', 'queue'),
    ('gacd', 'direction', 'student'),
    ('gacd', 'classifier', 'probe'),
    ('fitnets', 'hint', 'stage9'),
  ],
)
def test_a_wrong_choice_is_named_with_the_right_ones(name, key, value):
  with pytest.raises(UserError, match=f"method.{key}='{value}'.*use one of"):
    made(name, **{key: value})


@pytest.mark.parametrize(
  'loss,negatives', [('nce', 'batch'), ('infonce', 'bank')]
)
def test_the_student_learns_from_the_teacher_as_anchor(loss, negatives):
  """The trap: against candidates that are constants it would not."""
  arguments = dict(loss=loss, negatives=negatives, classifier='none', tau=0.5)
  method, weights, memory = made('gacd', **arguments)

  def constant(ctx, batch, adv):
    def student(image):
      out = ctx.student(image)
      return out._replace(features=jax.lax.stop_gradient(out.features))

    return method.loss(ctx._replace(student=student), batch, adv)

  _, live, _ = step(method, weights, memory)
  _, dead, _ = step(method._replace(loss=constant), weights, memory)
  for grad, learns in ((live, True), (dead, False)):
    assert np.any(grad['student']['pool']) == learns
    assert np.any(grad['heads']['teacher']['kernel'])
  # Nothing but the features is trained without the classifier.
  assert not np.any(live['student']['out'])


def test_images_that_the_teacher_gets_wrong_count_little():
  """Of a teacher that is sure and half the time wrong."""
  logits = 9.0 * np.eye(3)[[0, 1, 2, 1, 2, 0]]
  right = np.array([1, 1, 1, 0, 0, 0])
  for name, expected in (
    ('probability', right),
    ('correct', right),
    ('one', np.ones(6)),
  ):
    found = WEIGHTS[name](jnp.asarray(logits), jnp.asarray(LABEL), 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_queue_starts_empty_and_takes_the_images_of_all_devices():
  method, weights, memory = made('gacd', negatives='bank', bank_size=8)
  shapes = {k: v.shape for k, v in memory.items()}
  assert shapes == {'label': (8,), 'student': (8, 128)}
  value, _, after = step(method, weights, memory, devices=2, slope=False)
  np.testing.assert_allclose(
    value, step(*made('gacd'), slope=False)[0], rtol=1e-5
  )
  np.testing.assert_array_equal(after['label'], [*LABEL, -1, -1])
  s = projected(weights['heads'], 'student', network(STUDENT, ADV))
  np.testing.assert_allclose(after['student'][:6], s, atol=1e-5)


def test_the_queue_forgets_the_oldest():
  method, weights, memory = made('gacd', negatives='bank', bank_size=8)
  memory['label'] = np.array([2, 1, 0, 0, 1, 2, 0, 1], np.int32)
  _, _, after = step(method, weights, memory, slope=False)
  np.testing.assert_array_equal(after['label'], [*LABEL, 2, 1])
  assert made('gacd', negatives='bank')[2]['label'].shape == (ROWS,)


@pytest.mark.parametrize('loss', [nce, infonce])
def test_an_anchor_without_negatives_is_finite(loss):
  def total(score):
    return loss(score[:, 0], score, jnp.zeros((6, 6), bool)).sum()

  score = jnp.asarray(RNG.normal(size=(1, 6, 6)) * 9)
  found = jax.vmap(jax.value_and_grad(total), axis_name=AXIS)(score)
  assert all(np.isfinite(f).all() for f in found)


def test_negatives_are_drawn_evenly_from_all_other_rows():
  rng = jax.random.split(jax.random.key(0), 3)
  found = np.asarray(draw(rng, KNOWN, jnp.array([0, 1, 2]), 4000))
  for label, rows in enumerate(found):
    others = np.flatnonzero(label != KNOWN)  # unknown ones are among them
    counts = np.bincount(rows, minlength=ROWS)
    assert set(np.flatnonzero(counts)) == set(others)
    share = counts[others] * len(others) / 4000
    np.testing.assert_allclose(share, 1, atol=0.2)


def test_crd_sets_z_by_the_first_batch_and_moves_rows():
  method, weights, memory = made('crd', feature_dim=DIM, momentum=0.25)
  assert (memory['label'] == -1).all() and not memory['z'].any()
  _, _, after = step(method, weights, memory, devices=2, slope=False)
  heads = weights['heads']
  s = projected(heads, 'student', network(STUDENT, CLEAN))
  t = projected(heads, 'teacher', teacher(CLEAN))
  rows = own_and_drawn(ROW, memory['label'], ROWS)  # as many as there are
  for live, bank, z in (
    (s, memory['teacher'], after['z'][0]),
    (t, memory['student'], after['z'][1]),
  ):
    score = np.einsum('bd,bnd->bn', live, bank[rows]) / 0.07
    np.testing.assert_allclose(z, ROWS * np.exp(score).mean(), rtol=1e-4)
  expected = memory['student'].copy()
  expected[ROW] = length_one(0.25 * expected[ROW] + 0.75 * s)
  np.testing.assert_allclose(after['student'], expected, atol=1e-5)
  expected = np.full(ROWS, -1)
  expected[ROW] = LABEL
  np.testing.assert_array_equal(after['label'], expected)


def test_images_without_a_row_take_no_part_in_crd():
  """`extra` images: they neither enter the banks nor the contrast."""
  method, weights, memory = made('crd', feature_dim=DIM, gamma=0.0)
  memory = jax.tree.map(
    lambda x, old: x.astype(old.dtype), filled(dict(memory)), memory
  )
  row = np.array([3, ROWS, 0, 5, ROWS, 7])
  value, _, after = step(method, weights, memory, 2, row, slope=False)
  still = [1, 2, 4, 6, 8]
  for name in ('student', 'teacher', 'label'):
    np.testing.assert_array_equal(after[name][still], memory[name][still])
  np.testing.assert_array_equal(after['z'], memory['z'])  # of earlier steps
  # The mean over the images that have a row.
  mean = 0.0
  rows = own_and_drawn(row % ROWS, KNOWN, ROWS)
  for live, bank, found, z in (
    ('student', 'teacher', network(STUDENT, CLEAN), memory['z'][0]),
    ('teacher', 'student', teacher(CLEAN), memory['z'][1]),
  ):
    v = projected(weights['heads'], live, found)
    each = crd_loss(v, memory[bank], rows, z, 0.07)
    mean += np.asarray(each)[row < ROWS].mean()
  np.testing.assert_allclose(value, 0.8 * mean, rtol=1e-4)


def test_equal_widths_need_no_layer_in_rrm():
  image = jnp.asarray(CLEAN)
  out = output(STUDENT, image)
  assert METHODS['rrm']().init_heads(jax.random.key(0), out, out) == {}
  method, weights, _ = made('rrm')
  ctx = Context(
    partial(output, STUDENT), partial(output, STUDENT), {}, jnp.zeros(())
  )
  found = method.loss(ctx, Batch(image, jnp.asarray(TARGET)), image)
  np.testing.assert_allclose(found.metrics['cosine'], 1.0, rtol=1e-5)


def test_gradients_are_finite_where_lengths_are_zero():
  grad = jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))
  assert not np.asarray(grad).any()
  method, weights, memory = made('rkd')
  weights['student']['pool'] = np.zeros_like(STUDENT['pool'])
  value, grad, _ = step(method, weights, memory)  # all distances are zero
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grad))


def test_maps_that_do_not_divide_are_refused():
  with pytest.raises(UserError, match='5x5 and 4x4 pixels'):
    same_size(jnp.zeros((1, 5, 5, 2)), jnp.zeros((1, 4, 4, 2)))
