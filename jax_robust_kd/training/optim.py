"""Learning-rate schedules and optimizers, on Optax."""

from collections.abc import Callable

import jax
import optax

from jax_robust_kd.core import PyTree, UserError


def make_schedule(
  name: str,
  *,
  learning_rate: float,
  total_steps: int,
  warmup_steps: int,
  milestones: tuple[float, ...],
  decay: float,
) -> Callable:
  """Builds a schedule, a pure function of the step.

  Args:
    name: 'constant', 'cosine' (to 0) or 'step' (times `decay` at each
      milestone).
    learning_rate: the peak.
    total_steps: optimizer steps of the whole run.
    warmup_steps: linear from 0; part of `total_steps`.
    milestones: shares of the run in (0, 1), for 'step'.
    decay: factor at each milestone.

  Raises:
    UserError: an unknown name.
  """
  if name == 'constant':
    main = optax.constant_schedule(learning_rate)
  elif name == 'cosine':
    steps = max(total_steps - warmup_steps, 1)
    main = optax.cosine_decay_schedule(learning_rate, steps)
  elif name == 'step':
    edges = [round(m * total_steps) - warmup_steps for m in milestones]
    main = optax.piecewise_constant_schedule(
      learning_rate, {edge: decay for edge in edges}
    )
  else:
    raise UserError(
      f'optimizer.schedule={name!r} is unknown; use constant, cosine or step'
    )
  if not warmup_steps:
    return main
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, main], [warmup_steps])


def kernels_only(params: PyTree) -> PyTree:
  """True for convolution and linear kernels: all leaves of rank >= 2."""
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def make_optimizer(
  name: str,
  schedule: Callable,
  *,
  momentum: float,
  nesterov: bool,
  weight_decay: float,
  decay_on: str,
  clip_norm: float,
) -> optax.GradientTransformation:
  """Builds the optimizer: clip, decay, update.

  Weight decay is added to the gradient for 'sgd' (as PyTorch does) and is
  decoupled for 'adamw'.

  Args:
    name: 'sgd' or 'adamw'.
    schedule: step -> learning rate.
    momentum: of SGD; ignored by AdamW.
    nesterov: of SGD; ignored by AdamW.
    weight_decay: coefficient, 0 for none.
    decay_on: 'kernels' (no biases, no normalization) or 'all'.
    clip_norm: largest global norm of the gradient, 0 for no clipping.

  Raises:
    UserError: an unknown name or `decay_on`.
  """
  if decay_on not in ('kernels', 'all'):
    raise UserError(
      f'optimizer.decay_on={decay_on!r} is unknown; use kernels or all'
    )
  mask = kernels_only if decay_on == 'kernels' else None
  if name == 'sgd':
    update = optax.chain(
      optax.add_decayed_weights(weight_decay, mask),
      optax.sgd(schedule, momentum, nesterov),
    )
  elif name == 'adamw':
    update = optax.adamw(schedule, weight_decay=weight_decay, mask=mask)
  else:
    raise UserError(f'optimizer.name={name!r} is unknown; use sgd or adamw')
  if not clip_norm:
    return update
  return optax.chain(optax.clip_by_global_norm(clip_norm), update)
