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

Depthwise convolutions have the same structure with multiply-adds of shifted
images in place of products of matrices.

Limits: reverse mode only (`jax.jvp` raises TypeError), no kernel dilation.
Other cases and other backends take `lax.conv_general_dilated`.
"""

from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jax_robust_kd.core import Array

_NHWC = ('NHWC', 'HWIO', 'NHWC')
# One block of unfolded patches should live in the cache: measured best among
# 2 to 40 MB (2 cores, 2 MB L2 each).
_BLOCK_BYTES = 8 * 2**20
_SMALL_IMAGE = 8 * 8  # pixels


class _Spec(NamedTuple):
  """What does not change: all that two arrays need to be convolved."""

  in_hw: tuple[int, int]  # height and width of x
  kernel: tuple[int, int]
  stride: tuple[int, int]
  pads: tuple[tuple[int, int], ...]  # may be negative
  dilation: tuple[int, int]  # zeros between the pixels of x, plus one
  depthwise: bool
  precision: object

  @property
  def spread_hw(self) -> tuple[int, ...]:
    """Height and width of x once dilated, before padding."""
    return tuple(
      (n - 1) * d + 1 for n, d in zip(self.in_hw, self.dilation, strict=True)
    )

  @property
  def out_hw(self) -> tuple[int, ...]:
    """Height and width of the result."""
    return tuple(
      (n + sum(p) - k) // s + 1
      for n, p, k, s in zip(
        self.spread_hw, self.pads, self.kernel, self.stride, strict=True
      )
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

  The backend is looked up when the function is traced, not when it runs.

  Args:
    lhs: [B, H, W, C] images.
    rhs: [kh, kw, C / groups, O] kernel.
    window_strides: two strides.
    padding: 'SAME', 'VALID' or ((top, bottom), (left, right)).
    lhs_dilation: as in lax.
    rhs_dilation: as in lax; anything but 1 takes the plain convolution.
    dimension_numbers: as in lax; anything but NHWC/HWIO/NHWC takes the plain
      convolution.
    feature_group_count: number of groups; C for a depthwise convolution.
    precision: as in lax.

  Returns:
    [B, h, w, O] in the dtype of the images.
  """
  plain = functools.partial(
    lax.conv_general_dilated,
    window_strides=window_strides,
    padding=padding,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=dimension_numbers,
    feature_group_count=feature_group_count,
    precision=precision,
  )
  if jax.default_backend() != 'cpu' or not _is_plain_2d(
    lhs, rhs, rhs_dilation, dimension_numbers
  ):
    return plain(lhs, rhs)
  stride = (window_strides[0], window_strides[1])
  dilation = tuple(lhs_dilation or (1, 1))
  return grouped_conv(
    lhs, rhs, stride, padding, dilation, feature_group_count, precision
  )


def grouped_conv(lhs, rhs, stride, padding, dilation, groups, precision):
  """The CPU convolution, whatever the backend; arguments as conv_general."""
  channels = lhs.shape[3]
  if groups == channels and groups > 1:
    lhs = jnp.repeat(lhs, rhs.shape[3] // channels, axis=3)
  elif groups > 1:
    parts = zip(
      jnp.split(lhs, groups, axis=3),
      jnp.split(rhs, groups, axis=3),
      strict=True,
    )
    one = [
      grouped_conv(x, w, stride, padding, dilation, 1, precision)
      for x, w in parts
    ]
    return jnp.concatenate(one, axis=3)
  kernel = rhs.shape[:2]
  if isinstance(padding, str):
    spread = [(n - 1) * d + 1 for n, d in zip(lhs.shape[1:3], dilation)]
    padding = lax.padtype_to_pads(spread, kernel, stride, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  if kernel == (1, 1) and dilation == (1, 1) and not any(map(any, pads)):
    # What a strided 1x1 kernel skips need not enter the product at all.
    lhs, stride = lhs[:, :: stride[0], :: stride[1]], (1, 1)
  spec = _Spec(
    lhs.shape[1:3], kernel, stride, pads, dilation, groups > 1, precision
  )
  return _conv(spec, lhs, rhs)


def _is_plain_2d(lhs, rhs, rhs_dilation, dimension_numbers) -> bool:
  """Whether the hand-written convolution covers this case."""
  if lhs.ndim != 4 or any(d != 1 for d in rhs_dilation or ()):
    return False
  found = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  return found == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(spec: _Spec, x: Array, w: Array) -> Array:
  """[B, H, W, C] with [kh, kw, C, O] (depthwise: [kh, kw, 1, C])."""
  if spec.depthwise:
    return _depthwise(spec, x, w)
  if _is_matmul(spec):
    return lax.dot_general(
      x, w[0, 0], (((3,), (0,)), ((), ())), precision=spec.precision
    )
  return lax.conv_general_dilated(
    x,
    w,
    spec.stride,
    spec.pads,
    lhs_dilation=spec.dilation,
    dimension_numbers=_NHWC,
    precision=spec.precision,
  )


def _conv_fwd(spec, x, w):
  return _conv(spec, x, w), (x, w)


def _conv_bwd(spec, kept, g):
  x, w = kept
  return _input_grad(spec, g, w), _weight_grad(spec, x, g)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _input_grad(spec: _Spec, g: Array, w: Array) -> Array:
  """The transpose of _conv in x: a convolution with the kernel turned.

  Stride and dilation change places. Derivation in one dimension: y[o] = sum_k
  z[o s + k - lo] w[k], with z the dilated x; hence dz[i] = sum_k g'[i + lo - k]
  w[k], with g' = g dilated by s; and dx keeps every d-th entry of dz.
  """
  spread_g = [
    (n - 1) * s + 1 for n, s in zip(spec.out_hw, spec.stride, strict=True)
  ]
  pads = tuple(
    (k - 1 - low, n - m + low)
    for k, (low, _), n, m in zip(
      spec.kernel, spec.pads, spec.spread_hw, spread_g, strict=True
    )
  )
  turned = jnp.flip(w, (0, 1))
  if not spec.depthwise:
    turned = turned.transpose(0, 1, 3, 2)
  back = spec._replace(
    in_hw=spec.out_hw, stride=spec.dilation, dilation=spec.stride, pads=pads
  )
  return _conv(back, g, turned)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weight_grad(spec: _Spec, x: Array, g: Array) -> Array:
  """The transpose of _conv in w, [kh, kw, C, O] (depthwise: [kh, kw, 1, C])."""
  if spec.depthwise:
    return _depthwise_weight_grad(spec, x, g)
  if _is_matmul(spec):
    return _patches_dot(x, g, spec.precision)[None, None]
  return _dense_weight_grad(spec, x, g)


def _weight_grad_fwd(spec, x, g):
  return _weight_grad(spec, x, g), (x, g)


def _weight_grad_bwd(spec, kept, ct):
  x, g = kept
  return _input_grad(spec, g, ct), _conv(spec, x, ct)


_weight_grad.defvjp(_weight_grad_fwd, _weight_grad_bwd)


def _is_matmul(spec: _Spec) -> bool:
  return spec.kernel == spec.stride == spec.dilation == (1, 1) and not any(
    map(any, spec.pads)
  )


def _padded(spec: _Spec, x: Array) -> Array:
  """x with its zeros around and between."""
  zero = jnp.zeros((), x.dtype)
  inner = [
    (low, high, d - 1)
    for (low, high), d in zip(spec.pads, spec.dilation, strict=True)
  ]
  return lax.pad(x, zero, [(0, 0, 0), *inner, (0, 0, 0)])


def _shifted(spec: _Spec, padded: Array) -> list[Array]:
  """What each tap of the kernel sees: kh kw views [..., h, w, C]."""
  (sh, sw), (h, w) = spec.stride, spec.out_hw
  lead = padded.ndim - 3
  return [
    lax.slice(
      padded,
      (0,) * lead + (i, j, 0),
      padded.shape[:lead]
      + (i + (h - 1) * sh + 1, j + (w - 1) * sw + 1, padded.shape[-1]),
      (1,) * lead + (sh, sw, 1),
    )
    for i in range(spec.kernel[0])
    for j in range(spec.kernel[1])
  ]


def _patches_dot(patches: Array, g: Array, precision) -> Array:
  """Sums patches[..., c] g[..., o] over all but the last axes, [c, o].

  The narrow operand goes first and the result is turned: up to twice as fast
  on XLA:CPU as the direct order.
  """
  flat = [a.reshape(-1, a.shape[-1]) for a in (g, patches)]
  return lax.dot_general(*flat, (((0,), (0,)), ((), ())), precision=precision).T


def _dense_weight_grad(spec: _Spec, x: Array, g: Array) -> Array:
  """Products of unfolded patches with g, a few images at a time.

  For small images a convolution with batch and channels exchanged is as fast,
  and quicker to compile. Its window is the whole image, though, and from 16x16
  on it takes 1.5 to 3 times as long.
  """
  (kh, kw), (h, w) = spec.kernel, spec.out_hw
  if h * w <= _SMALL_IMAGE:
    return _exchanged_weight_grad(spec, x, g)
  c, o = x.shape[3], g.shape[3]
  batch, width = x.shape[0], kh * kw * c
  blocks = _num_blocks(batch, h * w * width * x.dtype.itemsize)

  def cut(a):
    return a.reshape(blocks, batch // blocks, *a.shape[1:])

  def add(total, xg):
    patches = jnp.concatenate(_shifted(spec, xg[0]), axis=3)
    return total + _patches_dot(patches, xg[1], spec.precision), None

  zero = jnp.zeros((width, o), x.dtype)
  total, _ = lax.scan(add, zero, (cut(_padded(spec, x)), cut(g)))
  return total.reshape(kh, kw, c, o)


def _exchanged_weight_grad(spec: _Spec, x: Array, g: Array) -> Array:
  """The convolution of x [C, H, W, B] with the kernel g [h, w, B, O]."""
  pads = tuple(
    (low, (n - 1) * s + k - m - low)
    for n, s, k, m, (low, _) in zip(
      spec.out_hw,
      spec.stride,
      spec.kernel,
      spec.spread_hw,
      spec.pads,
      strict=True,
    )
  )
  out = lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0),
    g.transpose(1, 2, 0, 3),
    (1, 1),
    pads,
    lhs_dilation=spec.dilation,
    rhs_dilation=spec.stride,
    dimension_numbers=_NHWC,
    precision=spec.precision,
  )
  return out.transpose(1, 2, 0, 3)


def _num_blocks(batch: int, bytes_per_image: int) -> int:
  """The least divisor of the batch whose blocks fit in the cache."""
  wanted = math.ceil(batch * bytes_per_image / _BLOCK_BYTES)
  return next(
    n for n in range(1, batch + 1) if batch % n == 0 and n >= min(wanted, batch)
  )


def _depthwise(spec: _Spec, x: Array, w: Array) -> Array:
  """A multiply-add per tap, which XLA fuses into one pass."""
  taps = w.reshape(-1, w.shape[3])
  views = _shifted(spec, _padded(spec, x))
  return sum(
    (view * tap for view, tap in zip(views[1:], taps[1:], strict=True)),
    start=views[0] * taps[0],
  )


def _depthwise_weight_grad(spec: _Spec, x: Array, g: Array) -> Array:
  """One accumulator per tap over the batch, summed over pixels at the end.

  Nine plain reductions over batch and pixels take four times as long.
  """

  def add(totals, xg):
    views = _shifted(spec, xg[0])
    return [t + v * xg[1] for t, v in zip(totals, views, strict=True)], None

  kh, kw = spec.kernel
  zeros = [jnp.zeros(g.shape[1:], g.dtype)] * (kh * kw)
  totals, _ = lax.scan(add, zeros, (_padded(spec, x), g))
  taps = jnp.stack([jnp.sum(t, axis=(0, 1)) for t in totals])
  return taps.reshape(kh, kw, 1, g.shape[3])
