"""What a step costs, counted on its jaxpr before anything is compiled."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from jax_robust_kd.core import AXIS, Forward, PyTree

# Elementwise primitives that are counted as one operation per output element.
_ARITHMETIC = frozenset(
  [
    'add',
    'sub',
    'mul',
    'div',
    'max',
    'min',
    'exp',
    'log',
    'tanh',
    'logistic',
    'rsqrt',
    'sqrt',
    'sign',
  ]
)


def count_flops(function: Callable[..., PyTree], *args) -> float:
  """Counts the operations of `function(*args)`, loops unrolled.

  XLA's own estimate counts the body of a loop once, which hides the attack.
  Zeros inserted by a strided convolution's gradient are not counted; the body
  of a `while` with unknown length is counted once.

  Args:
    function: any traceable function.
    *args: arrays or `jax.ShapeDtypeStruct`.

  Returns:
    Floating-point operations; a multiply-add is two.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> float:
  return sum(_count_equation(eqn) for eqn in jaxpr.eqns)


def _count_equation(eqn) -> float:
  name, params = eqn.primitive.name, eqn.params
  size = sum(math.prod(v.aval.shape) for v in eqn.outvars)
  if name == 'dot_general':
    contracted = params['dimension_numbers'][0][0]
    return (
      2
      * size
      * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    )
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[params['dimension_numbers'].rhs_spec[0]]
    zeros = math.prod(params['lhs_dilation'] or (1,))
    return 2 * size * math.prod(kernel) / out_features / zeros
  inner = [_count(j) for v in params.values() for j in jaxprs_of(v)]
  if name == 'scan':
    return params['length'] * sum(inner)
  if name == 'cond':
    return max(inner)
  return sum(inner) + (size if name in _ARITHMETIC else 0)


def jaxprs_of(value) -> list:
  """Returns the jaxprs inside one parameter of an equation."""
  if isinstance(value, (tuple, list)):
    return [j for v in value for j in jaxprs_of(v)]
  value = getattr(value, 'jaxpr', value)
  return [value] if hasattr(value, 'eqns') else []


def step_cost(
  step: Callable[..., tuple],
  state: PyTree,
  teacher_variables: PyTree,
  student: Forward,
  batch_shape: tuple[int, ...],
) -> tuple[float, float]:
  """Counts a training step over the global batch.

  Args:
    step: (state, teacher_variables, batch) -> (state, metrics).
    state: the training state, arrays or shapes.
    teacher_variables: arrays or shapes.
    student: (variables, image, mode) -> Output.
    batch_shape: (B, H, W, C) of the global batch.

  Returns:
    The step in forward passes of the student, and in floating-point operations.
  """
  size = batch_shape[0]
  batch = {
    'image': jax.ShapeDtypeStruct((1, *batch_shape), jnp.uint8),
    'label': jax.ShapeDtypeStruct((1, size), jnp.int32),
    'index': jax.ShapeDtypeStruct((1, size), jnp.int32),
    'row': jax.ShapeDtypeStruct((1, size), jnp.int32),
  }
  on_one = jax.vmap(
    step, in_axes=(None, None, 0), out_axes=None, axis_name=AXIS
  )
  total = count_flops(on_one, state, teacher_variables, batch)
  variables = {
    'params': state.params['student'],
    'batch_stats': state.batch_stats,
  }
  image = jax.ShapeDtypeStruct(batch_shape, jnp.float32)
  forward = count_flops(lambda v, x: student(v, x, 'eval'), variables, image)
  return total / forward, total
