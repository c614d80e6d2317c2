"""A 2-D convolution that stays fast on CPUs inside scan, while and cond.

XLA:CPU has a fast path for convolutions whose operands are laid out
NHWC/HWIO/NHWC. The gradients that autodiff writes are not, and inside a loop or
a branch nothing brings them into that form: one gradient in `lax.scan` was
measured 2.4 to 40 times slower than outside. Here both gradients are written in
the fast form by hand.

Three linear maps are closed under differentiation, so that a gradient of a
gradient (KDIGA) takes the same fast path at any depth:

  y  = conv(x, w)         by x: conv(g, turned w)    by w: dw(x, g)
  dw = weight_grad(x, g)  by x: conv(g, turned ct)   by g: conv(x, ct)

Depthwise convolutions are multiply-adds of shifted images. Reverse mode only.
"""

from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jax_robust_kd.core import Array
from jax_robust_kd.models import narrow_conv
from jax_robust_kd.runtime import target

# Bytes of a block of unfolded patches: the best of 2 to 40 MB measured.
_BLOCK_BYTES = 8 * 2**20
# Results of few pixels are sums of products, one per tap: XLA:CPU turns the
# kernel of a convolution in memory first, and that takes longer than it does.
_FEW_PIXELS = 4 * 4
_FEW_TAPS = 3 * 3


class _Axis(NamedTuple):
  """Geometry of one of the two axes."""

  size: int  # of x
  kernel: int
  stride: int
  low: int  # zeros before x; negative crops
  high: int
  dilation: int  # distance of the pixels of x once zeros are put between


class _Spec(NamedTuple):
  """All about a convolution but its two arrays."""

  rows: _Axis
  columns: _Axis
  depthwise: bool
  precision: lax.PrecisionLike


def _spread(axis: _Axis) -> int:
  """Size of x once dilated, before padding."""
  return (axis.size - 1) * axis.dilation + 1


def _out(axis: _Axis) -> int:
  """Size of the result."""
  room = _spread(axis) + axis.low + axis.high - axis.kernel
  return room // axis.stride + 1


def _seen(axis: _Axis) -> int:
  """Distance of the first and the last window, plus one."""
  return (_out(axis) - 1) * axis.stride + 1


def _turned(axis: _Axis) -> _Axis:
  """The geometry of the input gradient: stride and dilation change places.

  y[o] = sum_k z[o s + k - low] w[k], with z the dilated x; hence dz[i] = sum_k
  g'[i + low - k] w[k], with g' = g dilated by s; dx keeps every d-th of dz.
  """
  return _Axis(
    size=_out(axis),
    kernel=axis.kernel,
    stride=axis.dilation,
    low=axis.kernel - 1 - axis.low,
    high=_spread(axis) - _seen(axis) + axis.low,
    dilation=axis.stride,
  )


def conv_general(
  lhs: Array,
  rhs: Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: lax.ConvDimensionNumbers | None = None,
  feature_group_count: int = 1,
  precision: lax.PrecisionLike = None,
) -> Array:
  """Drop-in for `lax.conv_general_dilated`, for `flax.linen.Conv`.

  Written by hand for CPUs (`runtime.target` when traced), for [B, H,
  W, C] images and [kh, kw, C / groups, O] kernels, dense or depthwise, without
  kernel dilation; everything else is the plain convolution. Arguments and
  result are those of lax.
  """
  groups, dilation = feature_group_count, tuple(lhs_dilation or (1, 1))
  by_hand = (
    target.platform() == 'cpu'
    and lhs.ndim == 4
    and groups in (1, lhs.shape[3])
    and all(d == 1 for d in rhs_dilation or ())
    and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    == lax.conv_dimension_numbers(lhs.shape, rhs.shape, narrow_conv.NHWC)
  )
  if not by_hand:
    rest = (lhs_dilation, rhs_dilation, dimension_numbers, groups)
    return lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, *rest, precision=precision
    )
  if groups > 1:
    lhs = jnp.repeat(lhs, rhs.shape[3] // groups, axis=3)
  kernel, size = rhs.shape[:2], lhs.shape[1:3]
  if isinstance(padding, str):
    spread = [(n - 1) * d + 1 for n, d in zip(size, dilation, strict=True)]
    padding = lax.padtype_to_pads(spread, kernel, window_strides, padding)
  rows, columns = (
    _Axis(n, k, s, int(low), int(high), d)
    for n, k, s, (low, high), d in zip(
      size, kernel, window_strides, padding, dilation, strict=True
    )
  )
  if all(a[1:] == (1, a.stride, 0, 0, 1) for a in (rows, columns)):
    # What a strided 1x1 kernel skips need not enter the product at all.
    lhs = lhs[:, :: rows.stride, :: columns.stride]
    rows, columns = (_Axis(n, 1, 1, 0, 0, 1) for n in lhs.shape[1:3])
  return _conv(_Spec(rows, columns, groups > 1, precision), lhs, rhs)


def _conv_value(spec: _Spec, x: Array, w: Array) -> Array:
  """[B, H, W, C] with [kh, kw, C, O] (depthwise: [kh, kw, 1, C])."""
  if spec.depthwise:
    return _depthwise(spec, x, w)
  if _is_matmul(spec):
    return _tap_dots(spec, x, w)
  axes = (spec.rows, spec.columns)
  pixels, taps = (math.prod(map(f, axes)) for f in (_out, lambda a: a.kernel))
  if pixels <= _FEW_PIXELS and taps <= _FEW_TAPS:
    return _tap_dots(spec, x, w)
  strides, padding, dilation = zip(
    *((a.stride, (a.low, a.high), a.dilation) for a in axes), strict=True
  )
  return narrow_conv.convolve(x, w, strides, padding, dilation, spec.precision)


def _weight_grad_value(spec: _Spec, x: Array, g: Array) -> Array:
  """The transpose of _conv in w, [kh, kw, C, O] (depthwise: [kh, kw, 1, C])."""
  if spec.depthwise:
    dw = _depthwise_weight_grad(spec, x, g)
  elif _is_matmul(spec):
    dw = _patches_dot(x, g, spec.precision)[None, None]
  else:
    dw = _blocked_weight_grad(spec, x, g)
  return dw.astype(x.dtype)


def _input_grad(spec: _Spec, g: Array, w: Array) -> Array:
  """The transpose of _conv in x: a convolution with the kernel turned."""
  turned = jnp.flip(w, (0, 1))
  if not spec.depthwise:
    turned = turned.transpose(0, 1, 3, 2)
  rows, columns = _turned(spec.rows), _turned(spec.columns)
  return _conv(spec._replace(rows=rows, columns=columns), g, turned)


_conv = jax.custom_vjp(_conv_value, nondiff_argnums=(0,))
_weight_grad = jax.custom_vjp(_weight_grad_value, nondiff_argnums=(0,))
_conv.defvjp(
  lambda spec, x, w: (_conv(spec, x, w), (x, w)),
  lambda spec, xw, g: (
    _input_grad(spec, g, xw[1]),
    _weight_grad(spec, xw[0], g),
  ),
)
_weight_grad.defvjp(
  lambda spec, x, g: (_weight_grad(spec, x, g), (x, g)),
  lambda spec, xg, ct: (_input_grad(spec, xg[1], ct), _conv(spec, xg[0], ct)),
)


def _is_matmul(spec: _Spec) -> bool:
  return all(a[1:] == (1, 1, 0, 0, 1) for a in (spec.rows, spec.columns))


def _padded(spec: _Spec, x: Array) -> Array:
  """x with its zeros around and between."""
  inner = [(a.low, a.high, a.dilation - 1) for a in (spec.rows, spec.columns)]
  return lax.pad(x, x.dtype.type(0), [(0, 0, 0), *inner, (0, 0, 0)])


def _shifted(spec: _Spec, padded: Array) -> list[Array]:
  """What each tap of the kernel sees: kh kw views [..., h, w, C]."""
  r, c = spec.rows, spec.columns
  strips = [
    padded[..., i : i + _seen(r) : r.stride, :, :] for i in range(r.kernel)
  ]
  return [
    strip[..., j : j + _seen(c) : c.stride, :]
    for strip in strips
    for j in range(c.kernel)
  ]


def _tap_dots(spec: _Spec, x: Array, w: Array) -> Array:
  """Sums, over the taps, what a tap sees times its [C, O] weights."""
  views = _shifted(spec, _padded(spec, x))
  taps = w.reshape(-1, *w.shape[2:])
  dot = functools.partial(jnp.matmul, precision=spec.precision)
  return functools.reduce(jnp.add, map(dot, views, taps))


def _patches_dot(patches: Array, g: Array, precision) -> Array:
  """Sums patches[..., c] g[..., o] over all but the last axes, [c, o].

  In float32. Turning the result is up to twice as fast as the direct order;
  without flattening XLA:CPU would transpose the operands in memory.
  """
  return lax.dot_general(
    g.reshape(-1, g.shape[-1]),
    patches.reshape(-1, patches.shape[-1]),
    (((0,), (0,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  ).T


def _blocked_weight_grad(spec: _Spec, x: Array, g: Array) -> Array:
  """Products of unfolded patches with g, a few images at a time."""
  kernel = (spec.rows.kernel, spec.columns.kernel)
  batch, c, o = x.shape[0], x.shape[3], g.shape[3]
  width = math.prod(kernel) * c
  pixels = g.shape[1] * g.shape[2]
  blocks = _num_blocks(batch, pixels * width * x.dtype.itemsize)

  def cut(a):
    return a.reshape(blocks, batch // blocks, *a.shape[1:])

  def add(total, xg):
    patches = jnp.concatenate(_shifted(spec, xg[0]), axis=3)
    return total + _patches_dot(patches, xg[1], spec.precision), None

  zeros = jnp.zeros((width, o), jnp.float32)
  total = lax.scan(add, zeros, (cut(_padded(spec, x)), cut(g)))[0]
  return total.reshape(*kernel, c, o)


def _num_blocks(batch: int, bytes_per_image: int) -> int:
  """The least divisor of the batch whose blocks fit in the cache."""
  wanted = min(batch, math.ceil(batch * bytes_per_image / _BLOCK_BYTES))
  return next(n for n in range(wanted, batch + 1) if batch % n == 0)


def _depthwise(spec: _Spec, x: Array, w: Array) -> Array:
  """A multiply-add per tap, which XLA fuses into one pass."""
  views = _shifted(spec, _padded(spec, x))
  taps = w.reshape(-1, w.shape[3])
  return functools.reduce(jnp.add, map(jnp.multiply, views, taps))


def _depthwise_weight_grad(spec: _Spec, x: Array, g: Array) -> Array:
  """One accumulator per tap over the batch, summed over pixels at the end.

  Nine plain reductions over batch and pixels take four times as long.
  """

  def add(totals, xg):
    views = _shifted(spec, xg[0])
    return [t + v * xg[1] for t, v in zip(totals, views, strict=True)], None

  kernel = (spec.rows.kernel, spec.columns.kernel)
  zeros = [jnp.zeros(g.shape[1:], jnp.float32)] * math.prod(kernel)
  totals, _ = lax.scan(add, zeros, (_padded(spec, x), g))
  taps = jnp.stack([jnp.sum(t, axis=(0, 1)) for t in totals])
  return taps.reshape(*kernel, 1, g.shape[3])
