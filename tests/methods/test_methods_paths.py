"""MixACM, DARWIN, AdvFunMatch's ablations, FunMatch, MART and ARD.

Each loss is written down a second time, in NumPy from the papers' equations;
gradients are central differences of that NumPy loss.
"""

from functools import partial

from helpers.equations import (
  ADV,
  CLEAN,
  LABEL,
  TEACHER,
  ce_each,
  kl_each,
  linear,
  softmax,
)
from helpers.paths import (
  DARWIN,
  MIXED,
  PATHS,
  TEACHER_MAPS,
  WEIGHTS,
  attacked,
  context,
  cut,
  maps,
  run,
)
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import config, data
from jax_robust_kd.core import UserError
from jax_robust_kd.methods import METHODS


def scores(weights, image):
  return linear(cut(weights)['logits'].reshape(4, 3), image)


def soft_kl(weights, target, image, t=1.0):
  return t**2 * kl_each(target / t, scores(weights, image) / t).mean()


def hand_ard(w, alpha=1.0, t=30.0, scale=1.0):
  soft = soft_kl(w, linear(TEACHER, CLEAN), ADV, t)
  return alpha * scale * soft + (1 - alpha) * ce_each(scores(w, CLEAN)).mean()


def hand_mart(w, beta=5.0):
  p, q = softmax(scores(w, ADV)), softmax(scores(w, CLEAN))
  rows = np.arange(6)
  others = [max(p[i, k] for k in range(3) if k != LABEL[i]) for i in rows]
  bce = -np.log(p[rows, LABEL]) - np.log(1.0001 - np.array(others))
  kl = (q * np.log(q / p)).sum(axis=1)
  return (bce + beta * kl * (1 - q[rows, LABEL])).mean()


def hand_funmatch(w, t=1.0):
  return soft_kl(w, linear(TEACHER, CLEAN), CLEAN, t)


def hand_mixacm(
  w, acm=5.0, kl=1.0, ce=1.0, t=4.0, p=1, squared=False,
  blocks=('stem', 'stage1'),
):  # fmt: skip
  parts, total = cut(w), 0.0
  for place, name in enumerate(('stem', 'stage1')):
    if name not in blocks:
      continue
    own = (np.abs(maps(parts[name], CLEAN)) ** p).mean(axis=(1, 2))
    wanted = (np.abs(maps(TEACHER_MAPS[place], CLEAN)) ** p).mean(axis=(1, 2))
    if name == 'stage1':
      own = own @ parts['head'].reshape(3, 2)
    own = own / np.linalg.norm(own, axis=1, keepdims=True)
    wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    total += np.linalg.norm(own - wanted, axis=1) ** (2 if squared else 1)
  log_p = np.log(softmax(scores(w, CLEAN)))
  hard = -(MIXED * log_p).sum(axis=1).mean()
  soft = soft_kl(w, linear(TEACHER, CLEAN), CLEAN, t)
  return acm * total.mean() + kl * soft + ce * hard


def hand_advfunmatch(w, seen, clean_weight=0.0):
  value = soft_kl(w, linear(TEACHER, seen), ADV)
  clean = soft_kl(w, linear(TEACHER, CLEAN), CLEAN)
  return (1 - clean_weight) * value + clean_weight * clean


GOAL = (LABEL + 1 + np.arange(6) % 2) % 3  # what the targeted path aims at


def hand_weights(rule, tau=0.2, sees_clean=False):
  """[branch][N, B] at WEIGHTS, fixed: no gradient flows into them."""
  rows, clean, result = np.arange(6), softmax(scores(WEIGHTS, CLEAN)), []
  for path, classes, sign in zip(PATHS, (LABEL, GOAL), (-1, 1), strict=True):
    p = np.array([softmax(scores(WEIGHTS, x)) for x in path])
    logits = [linear(TEACHER, CLEAN if sees_clean else x) for x in path]
    q = np.array([softmax(z) for z in logits])
    change = sign * (p[:, rows, classes] - clean[rows, classes])
    drop = np.maximum(change, 0)
    drop = drop / np.maximum(drop.max(axis=1, keepdims=True), 1e-30)
    others = np.where(np.eye(3, dtype=bool)[LABEL], 0, p).max(axis=-1)
    kl = (q * np.log(q / p)).sum(axis=-1)
    result.append({
        'drop': drop,
        'boundary': np.exp(-abs(p[:, rows, LABEL] - others) / tau),
        'disagreement': np.exp(kl / tau) / np.exp(kl / tau).sum(axis=0),
        'reliability': drop * q[:, rows, LABEL] ** 0.1,
        'uniform': np.ones((3, 6)),
        'last': np.array([[0.0], [0.0], [1.0]]) * np.ones(6),
    }[rule])  # fmt: skip
  return result


def hand_darwin(
  w, rule='drop', a=1 / 6, b=0.5, tau=0.2, sees_clean=False
):  # fmt: skip
  def term(path, weight):
    kl = np.array([
        kl_each(linear(TEACHER, CLEAN if sees_clean else x), scores(w, x))
        for x in path
    ])  # fmt: skip
    total = weight.sum(axis=0)
    return ((weight * kl).sum(axis=0) / np.where(total == 0, 1, total)).mean()

  weights = hand_weights(rule, tau, sees_clean)
  untargeted, targeted = map(term, PATHS, weights)
  natural = soft_kl(w, linear(TEACHER, CLEAN), CLEAN)
  return a * natural + (1 - a) * ((1 - b) * untargeted + b * targeted)


BOTH = [*PATHS[0], *PATHS[1], CLEAN]
# method, arguments, its loss by hand, images that move the averages in order
CASES = [
    ('ard', {}, hand_ard, [ADV]),
    ('ard', dict(alpha=0.4, temperature=5.0, scale=0.1),
     partial(hand_ard, alpha=0.4, t=5.0, scale=0.1), [ADV, CLEAN]),
    ('mart', {}, hand_mart, [CLEAN, ADV]),
    ('mart', dict(beta=2.0), partial(hand_mart, beta=2.0), [CLEAN, ADV]),
    ('funmatch', {}, hand_funmatch, [CLEAN]),
    ('funmatch', dict(temperature=10.0), partial(hand_funmatch, t=10.0),
     [CLEAN]),
    ('advfunmatch', {}, partial(hand_advfunmatch, seen=ADV), [ADV]),
    ('advfunmatch', dict(teaching='clean', clean_weight=0.25),
     partial(hand_advfunmatch, seen=CLEAN, clean_weight=0.25), [ADV, CLEAN]),
    ('advfunmatch', dict(teaching='flipped'),
     partial(hand_advfunmatch, seen=ADV[:, :, ::-1]), [ADV]),
    ('mixacm', {}, hand_mixacm, [CLEAN]),
    ('mixacm', dict(p=2, distance='squared', temperature=1.0),
     partial(hand_mixacm, p=2, squared=True, t=1.0), [CLEAN]),
    ('mixacm', dict(alpha_acm=0.0), partial(hand_mixacm, acm=0.0), [CLEAN]),
    ('mixacm', dict(alpha_kl=0.0), partial(hand_mixacm, kl=0.0), [CLEAN]),
    ('mixacm', dict(alpha_ce=0.0, blocks=('stage1',)),
     partial(hand_mixacm, ce=0.0, blocks=('stage1',)), [CLEAN]),
    ('darwin', {}, hand_darwin, BOTH),
    ('darwin', dict(weights='boundary', tau=0.3, a=0.3, b=0.2),
     partial(hand_darwin, rule='boundary', tau=0.3, a=0.3, b=0.2), BOTH),
    ('darwin', dict(weights='disagreement', tau=2.0),
     partial(hand_darwin, rule='disagreement', tau=2.0), BOTH),
    ('darwin', dict(weights='reliability', teacher_sees='clean'),
     partial(hand_darwin, rule='reliability', sees_clean=True), BOTH),
    ('darwin', dict(weights='reliability'),
     partial(hand_darwin, rule='reliability'), BOTH),
    ('darwin', dict(weights='uniform'), partial(hand_darwin, rule='uniform'),
     BOTH),
    ('darwin', dict(weights='last'), partial(hand_darwin, rule='last'), BOTH),
    ('darwin', dict(b=0.0), partial(hand_darwin, b=0.0), [*PATHS[0], CLEAN]),
    ('darwin', dict(b=1.0), partial(hand_darwin, b=1.0), [*PATHS[1], CLEAN]),
]  # fmt: skip


@pytest.fixture
def known_goal(monkeypatch):
  """DARWIN's targeted path aims at GOAL, which the equations know."""
  rule = lambda ctx, batch, label: jnp.asarray(GOAL)  # noqa: E731
  monkeypatch.setitem(DARWIN.TARGETS, 'uniform', rule)


@pytest.mark.parametrize('name,arguments,by_hand,order', CASES)
def test_loss_and_averages(name, arguments, by_hand, order, known_goal):
  out = run(name, METHODS[name](**arguments), WEIGHTS)
  np.testing.assert_allclose(out.loss, by_hand(WEIGHTS), rtol=1e-5)
  seen = [np.sum(image) for image in order]
  expected = [0.0] * (9 - len(seen)) + seen
  np.testing.assert_allclose(out.batch_stats, expected, rtol=1e-5)


@pytest.mark.parametrize('name,arguments,by_hand,order', CASES)
def test_gradient(name, arguments, by_hand, order, known_goal):
  """Of all weights, MixACM's head among them; DARWIN's w_k are fixed."""
  del order
  with jax.enable_x64(True):
    method = METHODS[name](**arguments)
    grad = jax.grad(lambda w: run(name, method, w).loss)(jnp.asarray(WEIGHTS))
  for i, step in enumerate(np.eye(len(WEIGHTS)) * 1e-5):
    slope = (by_hand(WEIGHTS + step) - by_hand(WEIGHTS - step)) / 2e-5
    np.testing.assert_allclose(grad[i], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('name', ['ard', 'mart'])
def test_inner_problem_is_the_labels(name):
  _, (loss,) = attacked(METHODS[name](), context())
  expected = ce_each(scores(WEIGHTS, ADV))
  np.testing.assert_allclose(loss(jnp.asarray(ADV)), expected, rtol=1e-5)


@pytest.mark.parametrize('name', ['funmatch', 'mixacm'])
def test_no_inner_problem(name):
  adv, losses = attacked(METHODS[name](), context())
  assert not losses
  np.testing.assert_array_equal(adv, jnp.asarray(CLEAN))


def test_darwin_goes_up_the_label_and_down_to_the_goal(known_goal):
  _, (up, down) = attacked(METHODS['darwin'](), context())
  p = np.log(softmax(scores(WEIGHTS, ADV)))
  rows = np.arange(6)
  np.testing.assert_allclose(up(ADV), -p[rows, LABEL], rtol=1e-5)
  np.testing.assert_allclose(down(ADV), p[rows, GOAL], rtol=1e-5)


def test_advfunmatch_taught_by_the_clean_view_is_rslad():
  """As its docstring says."""
  mine = METHODS['advfunmatch'](inner='kl_to_teacher_clean', teaching='clean')
  other = METHODS['rslad'](alpha=1.0)
  assert mine.perturb is other.perturb
  both = [run('advfunmatch', m, WEIGHTS).loss for m in (mine, other)]
  assert both[0] == both[1]


@pytest.mark.parametrize(
  'arms,changed',
  [
    ('', dict(policy='autoaugment_cifar10')),
    (',plain', {}),
    (',cutout', dict(cutout=16)),
    (',cutmix', dict(cutmix_alpha=1.0)),
    (',mixup', dict(mixup_alpha=1.0)),
    (',randaugment', dict(policy='randaugment')),
    (',autoaugment+cutout', dict(policy='autoaugment_cifar10', cutout=16)),
  ],
)
def test_augmentation_arms_of_advfunmatch(arms, changed):
  c = config.load_config(f'configs/advfunmatch.py:cifar10{arms}')
  base = config.base_config('cifar10').data.augment.to_dict()
  assert c.data.augment.to_dict() == {**base, **changed}
  assert c.teacher.config == 'configs/teacher.py:cifar10'
  data.make_augment(num_classes=10, **c.data.augment.to_dict())


@pytest.mark.parametrize(
  'name,argument',
  [
    ('advfunmatch', dict(inner='mismach')),
    ('advfunmatch', dict(teaching='cut')),
    ('mixacm', dict(p=3)),
    ('mixacm', dict(distance='l1')),
    ('darwin', dict(weights='w')),
    ('darwin', dict(target='any')),
    ('darwin', dict(teacher_sees='x')),
    ('darwin', dict(num_points=-1)),
  ],
)
def test_unknown_values_are_named(name, argument):
  ((key, value),) = argument.items()
  with pytest.raises(UserError, match=f'method.{key}=.?{value}'):
    METHODS[name](**argument)
