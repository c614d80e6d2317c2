"""Which images move BatchNorm's running averages, and in what order.

The averages forget: the last images count most. So the order is part of a
method, and each method's docstring says it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd.core import AXIS, Ascent, Batch, Context, Output
from jax_robust_kd.methods import METHODS

RNG = np.random.default_rng(3)
B, K, ROWS = 4, 3, 9
X, A, *PATH = RNG.uniform(0.3, 0.6, size=(6, B, 4, 4, 1)).astype(np.float32)
# x: clean. a: adversarial. m: x - (x' - x). 1, 2: DARWIN's points from the
# label; 3, 4: those towards another class.
PATH_OF = dict(zip('1234', PATH, strict=True))
IMAGES = {'x': X, 'a': A, 'm': 2 * X - A, **PATH_OF}
FIELDS = 8  # of the record of a pass: newest last

# The passes of the student that move its averages, first to last.
ORDER = {
  'natural': 'x',
  'pgd_at': 'a',
  'trades': 'xa',
  'mart': 'xa',
  'kd': 'x',
  'ard': 'a',
  'rslad': 'ax',
  'iad': 'ax',
  'adaad': 'a',
  'adaiad': 'ax',
  'mtard': 'ax',
  'akd2': 'a',
  'igdm': 'am',
  'saad': 'am',
  'dgad': 'xa',
  'advfunmatch': 'a',
  'funmatch': 'x',
  'mixacm': 'x',
  'darwin': '1234x',
  'rrm': 'x',
  'at': 'x',
  'fitnets': 'x',
  'rkd': 'x',
  'crd': 'x',
  'gacd': 'a',
  'kdiga': 'x',
  'igam': 'a',
  'peeraid': 'ax',
}
# With another term there is another pass.
VARIANTS = [
  ('ard', dict(alpha=0.5), 'ax'),
  ('adaad', dict(alpha=0.5), 'ax'),
  ('iad', dict(version='II', robust_weight=0.5, clean_weight=0.25), 'ax'),
  ('advfunmatch', dict(clean_weight=0.25), 'ax'),
  ('igdm', dict(host='rslad'), 'axm'),
  ('igdm', dict(host='iad'), 'axm'),
  *[(name, dict(on='adv'), 'a') for name in ('at', 'crd', 'fitnets', 'rkd')],
  ('kdiga', dict(adversarial=True), 'a'),
  ('darwin', dict(b=0.0), '12x'),
]
CASES = [(name, {}, ORDER.get(name)) for name in METHODS] + VARIANTS


def network(seed, image, batch_stats=0.0):
  """Features of all kinds; the averages are the sums of the images so far."""
  draw = np.random.default_rng(seed).normal
  features = {
    name: jnp.tanh(image * draw(size=2).astype(np.float32))
    for name in ('stem', 'stage1', 'stage2', 'stage3')
  }
  pooled = image.reshape(len(image), -1) @ draw(size=(16, 5))
  logits = pooled @ draw(size=(5, K))
  seen = jnp.roll(jnp.broadcast_to(batch_stats, FIELDS), -1)
  seen = seen.at[-1].set(jnp.sum(image))
  return Output(logits, {**features, 'pooled': pooled}, seen)


def passes(method) -> jax.Array:
  """Returns the record of a step's outer loss, oldest pass first."""
  outputs = network(0, X), network(1, X)
  keys = jax.random.split(jax.random.key(0), B)
  context = Context(
    partial(network, 0),
    partial(network, 1),
    method.init_heads(keys[0], *outputs),
    jnp.asarray(0.5),
    teachers={name: partial(network, 1) for name in ('robust', 'clean')},
    peer=partial(network, 2),
    memory=method.init_memory(keys[1], *outputs, ROWS),
    rng=keys,
  )
  paths = [jnp.asarray(PATH[:2]), jnp.asarray(PATH[2:])]

  def maximize(rng, loss_fn, image):
    del rng, loss_fn, image
    return Ascent(jnp.asarray(A), paths.pop(0))

  batch = Batch(X, jnp.eye(K)[np.arange(B) % K], jnp.arange(B))
  adv = method.perturb(keys, context, batch, maximize)
  join = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf)[None])
  on_device = lambda *given: method.loss(context, *given).batch_stats  # noqa: E731
  return jax.jit(jax.vmap(on_device, axis_name=AXIS))(*join((batch, adv)))[0]


def names(seen) -> str:
  """Returns the letters of IMAGES whose sums were seen."""
  sums = {letter: float(image.sum()) for letter, image in IMAGES.items()}
  found = ''
  for value in np.asarray(seen)[np.asarray(seen) != 0]:
    near = [n for n, s in sums.items() if abs(s - value) < 1e-3]
    assert len(near) == 1, f'{value} is the sum of no known images'
    found += near[0]
  return found


@pytest.mark.parametrize('name,arguments,expected', CASES)
def test_order_of_the_passes(name, arguments, expected):
  assert expected is not None, f'say in ORDER what {name} passes'
  assert names(passes(METHODS[name](**arguments))) == expected


def test_images_can_be_told_apart():
  sums = sorted(float(image.sum()) for image in IMAGES.values())
  assert min(np.diff(sums)) > 0.05
  assert ORDER.keys() == METHODS.keys()
