"""The networks on which AutoAttack is held against its reference program.

Three files, each with weights, test images and labels:

- digits_std: the network of tests/golden, trained without attack.
- digits_adv: the same, trained on with PGD-7 at l_inf 0.1.
- resnet20: ResNet-20 with BatchNorm, trained at l_inf 8/255 on CIFAR-10 with
  one step from a random start (Wong et al. 2020). Its test images are the last
  10,000 of the training set, which it has never seen. Needs --data_dir.

python -m benchmarks.autoattack_networks FOLDER --data_dir DIR
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
import numpy as np
import optax

from jax_robust_kd import data, models
from jax_robust_kd.attacks.ascent import ascent
from jax_robust_kd.core import Array, image_keys
from jax_robust_kd.losses import cross_entropy
from jax_robust_kd.models.conv import conv_general

_GOLDEN = Path(__file__).parent.parent / 'tests/golden'
_PREFIX = 'std/weights/'
_AVERAGES = ('mean', 'var')  # of BatchNorm; all other leaves are trained
_LEAVES = {
  'weight': 'scale',
  'bias': 'bias',
  'running_mean': 'mean',
  'running_var': 'var',
}


class Network(NamedTuple):
  """What is attacked.

  Attributes:
    apply: [B, H, W, C] in [0, 1] -> logits [B, K].
    image: [N, H, W, C] float32 in [0, 1].
    label: [N] int32.
  """

  apply: Partial
  image: np.ndarray
  label: np.ndarray


def digits(weights: dict, image: Array) -> Array:
  """Two convolutions with BatchNorm by its averages, a mean, a linear layer."""
  x = image
  for number, stride in ((1, 1), (2, 2)):
    x = conv_general(
        x, weights[f'conv{number}/kernel'], (stride, stride), ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    bn = {k: weights[f'bn{number}/{k}'] for k in _LEAVES.values()}
    # One factor and one term a channel; XLA:CPU would divide at each pixel.
    factor = bn['scale'] / jnp.sqrt(bn['var'] + 1e-5)
    x = x * factor + (bn['bias'] - bn['mean'] * factor)
    x = jax.nn.relu(x)
  return x.mean((1, 2)) @ weights['head/kernel'] + weights['head/bias']


def resnet20(info: data.DatasetInfo) -> Any:
  """The module; it normalizes inside."""
  return models.build('resnet20', 10, dict(mean=info.mean, std=info.std))


def _resnet20_logits(module: Any, variables: dict, image: Array) -> Array:
  return models.forward(module, variables, image, 'eval').logits


def load(path: Path) -> Network:
  """Reads a network from its file."""
  with np.load(path) as stored:
    arrays = {key: stored[key] for key in stored.files}
  image, label = arrays.pop('image'), arrays.pop('label')
  if 'conv1/kernel' in arrays:
    return Network(Partial(digits, arrays), image, label)
  info = data.DATASETS['cifar10']
  named = {key: v for key, v in arrays.items() if key not in ('mean', 'std')}
  flat = {
    ('batch_stats' if key.endswith(_AVERAGES) else 'params', *key.split('/')): v
    for key, v in named.items()
  }
  apply = partial(_resnet20_logits, resnet20(info))
  return Network(Partial(apply, unflatten_dict(flat)), image, label)


def golden_digits() -> tuple[dict, dict]:
  """Returns the weights of tests/golden and its 200 test images."""
  with np.load(_GOLDEN / 'autoattack_digits_std.npz') as stored:
    weights = {}
    for key in stored.files:
      if not key.startswith(_PREFIX) or key.endswith('num_batches_tracked'):
        continue
      layer, _, leaf = key[len(_PREFIX) :].partition('.')
      value = stored[key]
      if layer.startswith('bn'):
        weights[f'{layer}/{_LEAVES[leaf]}'] = value
      elif leaf == 'bias':
        weights['head/bias'] = value
      elif layer == 'fc':
        weights['head/kernel'] = value.T
      else:
        weights[f'{layer}/kernel'] = value.transpose(2, 3, 1, 0)
    image = np.moveaxis(stored['std/autoattack/x'], 1, -1)
    label = stored['std/autoattack/y']
  images = {'image': image.astype(np.float32), 'label': label.astype(np.int32)}
  return weights, images


class Recipe(NamedTuple):
  """Adversarial training: Madry et al. 2018, with Adam and a falling rate."""

  epsilon: float
  step_size: float
  num_steps: int  # of the attack
  epochs: int
  batch: int
  rate: float


def _epoch(recipe: Recipe, tx, loss_fn, logits_fn):
  """Builds the step: attack, gradient, update."""

  @jax.jit
  def step(weights, kept, opt_state, key, image, label):
    target = jax.nn.one_hot(label, 10)
    keys = image_keys(key, jnp.arange(len(label)))
    adv = ascent(
        keys, lambda x: cross_entropy(logits_fn(weights, kept, x), target),
        image, norm='linf', epsilon=recipe.epsilon,
        step_size=recipe.step_size, num_steps=recipe.num_steps, init='uniform',
    ).adv  # fmt: skip
    (loss, kept), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
      weights, kept, adv, target
    )
    update, opt_state = tx.update(gradient, opt_state)
    return optax.apply_updates(weights, update), kept, opt_state, loss

  return step


def fit(recipe: Recipe, weights, kept, loss_fn, logits_fn, split) -> tuple:
  """Trains; `kept` are the values that the loss returns anew.

  Args:
    recipe: how.
    weights: trained.
    kept: not trained.
    loss_fn: (weights, kept, image, target) -> loss, kept.
    logits_fn: (weights, kept, image) -> [B, K], attacked.
    split: training images, uint8.

  Returns:
    weights and kept.
  """
  size = len(split.label) // recipe.batch
  rates = optax.linear_schedule(recipe.rate, 0.0, recipe.epochs * size)
  tx = optax.adam(rates)
  step = _epoch(recipe, tx, loss_fn, logits_fn)
  opt_state = tx.init(weights)
  for epoch in range(recipe.epochs):
    draws = np.random.default_rng(epoch)
    order = draws.permutation(len(split.label))[: size * recipe.batch]
    loss = 0.0
    for i, rows in enumerate(order.reshape(size, -1)):
      image = split.image[np.sort(rows)] / np.float32(255)
      if image.shape[-1] == 3 and draws.random() < 0.5:
        image = image[:, :, ::-1]
      key = jax.random.fold_in(jax.random.key(epoch), i)
      label = split.label[np.sort(rows)]
      weights, kept, opt_state, loss = step(
        weights, kept, opt_state, key, image, label
      )
    print(f'epoch {epoch + 1} of {recipe.epochs}: loss {loss:.3f}', flush=True)
  return weights, kept


def train_digits(weights: dict, split, epochs: int = 40) -> dict:
  """Trains on with PGD-7; BatchNorm keeps its averages."""
  averages = {k: v for k, v in weights.items() if k.endswith(_AVERAGES)}
  rest = {k: v for k, v in weights.items() if k not in averages}

  def logits_fn(weights, kept, image):
    return digits({**weights, **kept}, image)

  def loss_fn(weights, kept, image, target):
    losses = cross_entropy(logits_fn(weights, kept, image), target)
    return losses.mean(), kept

  recipe = Recipe(0.1, 0.025, 7, epochs, 50, 2e-3)
  return {k: np.asarray(v) for part in fit(
      recipe, rest, averages, loss_fn, logits_fn, split
  ) for k, v in part.items()}  # fmt: skip


def train_resnet20(split, info, epochs: int = 4) -> dict:
  """Trains with one step of 10/255 from a random start."""
  module = resnet20(info)
  variables = models.init(module, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))

  def call(weights, kept, image, mode):
    variables = {'params': weights, 'batch_stats': kept}
    return models.forward(module, variables, image, mode)

  def loss_fn(weights, kept, image, target):
    found = call(weights, kept, image, 'train')
    return cross_entropy(found.logits, target).mean(), found.batch_stats

  trained = fit(
      Recipe(8 / 255, 10 / 255, 1, epochs, 100, 4e-3),
      variables['params'], variables['batch_stats'], loss_fn,
      lambda *args: call(*args, 'eval').logits, split,
  )  # fmt: skip
  arrays = {'mean': np.array(info.mean), 'std': np.array(info.std)}
  for part in trained:
    for path, value in flatten_dict(part).items():
      arrays['/'.join(path)] = np.asarray(value)
  return arrays


def _images(split, count: int) -> dict:
  rows = np.arange(count)
  image = np.asarray(split.image[rows]) / np.float32(255)
  return {'image': image, 'label': split.label[rows].astype(np.int32)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=Path)
  parser.add_argument('--data_dir', help='of TFDS, with CIFAR-10')
  parser.add_argument('--epochs', type=int, default=4, help='of the ResNet-20')
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  weights, images = golden_digits()
  np.savez(args.folder / 'digits_std.npz', **weights, **images)
  digits_set = data.load('digits')
  adversarial = train_digits(weights, digits_set.train)
  images = _images(digits_set.test, 500)
  np.savez(args.folder / 'digits_adv.npz', **adversarial, **images)
  if args.data_dir:
    cifar = data.load(
        'cifar10', args.data_dir, num_train=20_000,
        train_split='train[:40000]', test_split='train[40000:]',
    )  # fmt: skip
    arrays = train_resnet20(cifar.train, cifar, args.epochs)
    images = _images(cifar.test, 1000)
    np.savez(args.folder / 'resnet20.npz', **arrays, **images)


if __name__ == '__main__':
  main()
