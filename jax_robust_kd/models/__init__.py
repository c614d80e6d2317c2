"""Models by name, and the one way in which they are called."""

from collections.abc import Callable, Mapping
import difflib
from functools import partial
import inspect
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jax_robust_kd.core import Array, Output, PyTree, UserError
from jax_robust_kd.models.mobilenet_v2 import MobileNetV2
from jax_robust_kd.models.preact_resnet import PreActResNet
from jax_robust_kd.models.resnet import ResNet, SmallResNet
from jax_robust_kd.models.wide_resnet import WideResNet
from jax_robust_kd.runtime.imports import load_object, names_object

MODELS: dict[str, Callable[..., nn.Module]] = {
  'resnet18': partial(ResNet, depth=18),
  'resnet34': partial(ResNet, depth=34),
  'resnet50': partial(ResNet, depth=50),
  'small_resnet': SmallResNet,
  'resnet20': partial(SmallResNet, depth=20),
  'resnet32': partial(SmallResNet, depth=32),
  'resnet56': partial(SmallResNet, depth=56),
  'preact_resnet18': PreActResNet,
  'preact_resnet18_v2': partial(
    PreActResNet, shortcut_activated=True, final_norm=True
  ),
  'dm_preact_resnet18': partial(
    PreActResNet,
    activation='swish',
    padding='same',
    shortcut_kernel=3,
    final_norm=True,
  ),
  'wide_resnet': WideResNet,
  'dm_wide_resnet': partial(WideResNet, activation='swish', padding='same'),
  'mobilenet_v2': MobileNetV2,
}

MODES = ('train', 'batch', 'eval')

__all__ = [
  'MODELS',
  'MODES',
  'MobileNetV2',
  'PreActResNet',
  'ResNet',
  'SmallResNet',
  'WideResNet',
  'build',
  'forward',
  'init',
  'num_params',
]


def build(
  name: str, num_classes: int, fields: Mapping[str, Any] | None = None
) -> nn.Module:
  """Builds a model by name.

  Args:
    name: a key of MODELS, or 'package.module:Class' of one's own.
    num_classes: K, >= 1.
    fields: further fields of the module, such as depth, width, mean, std,
      dtype (a dtype or its name) and bn_axis_name.

  Returns:
    A Flax module: (image, train) -> (logits, features).

  Raises:
    UserError: an unknown name or field, a field of the wrong kind, or a model
      of one's own that lacks what all have.

  Examples:
    >>> from jax_robust_kd import models
    >>> model = models.build('wide_resnet', 10, {'depth': 34})
    >>> type(model).__name__, model.depth, model.width
    ('WideResNet', 34, 10)
  """
  factory = _find(name)
  fields = dict(fields or {})
  known = inspect.signature(factory).parameters.keys()
  known -= {'num_classes', 'name', 'parent'}
  for field in fields:
    if field not in known:
      raise UserError(
        f'model {name!r} has no field {field!r}{_hint(field, known)}'
      )
  if 'dtype' in fields:
    fields['dtype'] = _dtype(fields['dtype'])
  for field in {'mean', 'std'} & fields.keys():
    fields[field] = _floats(field, fields[field])
  module = factory(num_classes=num_classes, **fields)
  if not isinstance(module, nn.Module):
    raise UserError(f'model {name!r} is no flax.linen.Module; return one')
  return module


def _find(name: str) -> Callable[..., nn.Module]:
  if name in MODELS:
    return MODELS[name]
  if not names_object(name):
    raise UserError(f'model {name!r} is unknown{_hint(name, MODELS)}')
  factory = load_object('model', name)
  needed = ('num_classes', 'dtype', 'mean', 'std')
  lacking = set(needed) - inspect.signature(factory).parameters.keys()
  if lacking:
    raise UserError(
      f'model {name!r} lacks {", ".join(sorted(lacking))}; '
      f'add to its fields {", ".join(needed)}'
    )
  return factory


def _hint(word: str, known) -> str:
  """What may have been meant, or else all there is."""
  near = difflib.get_close_matches(word, known, n=3)
  if near:
    return f': did you mean {" or ".join(map(repr, near))}?'
  return f': choose one of {", ".join(sorted(known))}'


def _floats(field: str, value: Any) -> tuple[float, ...]:
  try:
    return tuple(float(v) for v in value)
  except (TypeError, ValueError) as error:
    raise UserError(
      f'{field} {value!r} is not a list of numbers: give one per channel'
    ) from error


def _dtype(value: Any) -> Any:
  try:
    dtype = jnp.dtype(value)
  except TypeError:
    dtype = jnp.dtype('bool')
  if not jnp.issubdtype(dtype, jnp.floating):
    raise UserError(
      f"dtype {value!r} is not a float: choose 'float32' or 'bfloat16'"
    )
  return dtype


def init(model: nn.Module, key: Array, image: Array) -> PyTree:
  """Draws the initial weights of a model.

  Args:
    model: from `build`.
    key: a random key.
    image: [B, H, W, C], for its shape alone.

  Returns:
    {'params': ..., 'batch_stats': ...}, all float32.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import models
    >>> model = models.build('small_resnet', 10, {'depth': 8, 'width': 1})
    >>> sorted(models.init(model, jax.random.key(0), jnp.zeros((1, 4, 4, 1))))
    ['batch_stats', 'params']
  """
  # XLA:CPU takes a second for the random numbers of each new shape; with the
  # first level of optimization a third of that, and they come as fast.
  on_cpu = jax.default_backend() == 'cpu'
  options = {'xla_backend_optimization_level': 1} if on_cpu else None
  draw = jax.jit(partial(model.init, train=False), compiler_options=options)
  return {'batch_stats': {}, **draw(key, image)}


def forward(
  model: nn.Module, variables: PyTree, image: Array, mode: str
) -> Output:
  """Applies a model in one of the three modes of BatchNorm.

    mode   BatchNorm uses  running averages  used for
    train  the batch       move              the outer loss
    batch  the batch       stay              attacks, as DeepMind's
    eval   the averages    stay              teachers, attacks, evaluation

  Args:
    model: from `build`.
    variables: {'params': ..., 'batch_stats': ...}.
    image: [B, H, W, C] float32 in [0, 1].
    mode: 'train', 'batch' or 'eval'.

  Returns:
    Logits [B, K], features and the running averages after the call.

  Raises:
    UserError: an unknown mode.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import models
    >>> model = models.build('small_resnet', 10, {'depth': 8, 'width': 1})
    >>> image = jnp.zeros((2, 4, 4, 1))
    >>> variables = models.init(model, jax.random.key(0), image)
    >>> models.forward(model, variables, image, 'eval').logits.shape
    (2, 10)
  """
  if mode not in MODES:
    raise UserError(f'mode {mode!r} is unknown: choose one of {MODES}')
  if mode == 'eval':
    logits, features = cast(Any, model.apply(variables, image, train=False))
    return Output(logits, features, variables['batch_stats'])
  (logits, features), moved = cast(
    Any, model.apply(variables, image, train=True, mutable=['batch_stats'])
  )
  stats = moved if mode == 'train' else variables
  return Output(logits, features, stats.get('batch_stats', {}))


def num_params(params: PyTree) -> int:
  """Counts the weights.

  Args:
    params: `variables['params']` of a model; arrays or their shapes.

  Returns:
    The number of weights, running averages excluded.

  Examples:
    >>> import jax.numpy as jnp
    >>> from jax_robust_kd import models
    >>> models.num_params({'kernel': jnp.zeros((3, 3, 1, 8))})
    72
  """
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
