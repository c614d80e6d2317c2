"""Whether a robustness evaluation can be believed: green, amber, red.

  checks.run(model, images, labels, Budget('linf', 8 / 255, 2 / 255))

takes any function from images to logits. What it says about its own attacks
holds for the images that it draws; each check stands with its limits and its
sentences in `outputs`, `masking`, `strength` and `images`.
"""

from collections.abc import Callable

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.attacks import SUITES, Budget, Result
from jax_robust_kd.attacks.ascent import check_norm
from jax_robust_kd.attacks.autoattack import as_partial, check_images
from jax_robust_kd.attacks.gradient import check_epsilon
from jax_robust_kd.checks import images as of_images
from jax_robust_kd.checks import masking, outputs, strength
from jax_robust_kd.checks.check import LEVELS, Check, Verdict, judge
from jax_robust_kd.checks.evidence import (
  FULL,
  Evidence,
  Options,
  run_all_pgd,
  run_missing,
  with_pgd,
)
from jax_robust_kd.checks.model import Model, Outcome
from jax_robust_kd.checks.report import as_json, as_table, as_text, worst
from jax_robust_kd.core import UserError

CHECKS: tuple[Check, ...] = (
  outputs.CLEAN,
  outputs.DETERMINISM,
  outputs.BATCHES,
  outputs.LOGITS,
  masking.SCALE,
  strength.TARGETS,
  masking.GRADIENTS,
  masking.EPSILON_ZERO,
  masking.ONE_STEP,
  strength.CONVERGENCE,
  strength.RESTARTS,
  masking.EPSILON_CURVE,
  masking.NOISE,
  masking.SQUARE,
  outputs.PRECISION,
  of_images.BOX,
  of_images.RESCORING,
  strength.REPORTED,
)


def run(
  model: Callable,
  images: np.ndarray,
  labels: np.ndarray,
  budget: Budget,
  result: Result | None = None,
  options: Options = FULL,
) -> list[Verdict]:
  """Checks a model and, if given, the result of an evaluation of it.

  Attacks that `result` lacks are run here, all in the highest matmul precision.

  Args:
    model: [B, H, W, C] float32 in [0, 1] -> logits [B, K]; anything that JAX
      can trace, or an object with `as_partial()`. Large weights belong in a
      `jax.tree_util.Partial`, as they are constants of every program otherwise.
    images: [N, H, W, C] uint8, or float in [0, 1].
    labels: [N] integers.
    budget: norm, radius and number of targets; steps are those of `options`.
    result: of the same images in their order. Its apgd_ce, apgd_t and square,
      in any suite and of any length, are not run again; all but square count as
      attacks by gradients. Its adversarial images are all scored again.
    options: how long to attack, batch size, seed, and whom to tell.

  Returns:
    One verdict for each of CHECKS; the last is missing without `result`.

  Raises:
    UserError: arrays or budget do not fit.
  """
  apply = as_partial(model)
  image, label = _prepare(apply, images, labels, budget)
  random = np.random.default_rng(options.seed)
  rows = np.sort(random.permutation(len(label))[: options.num_images])
  place = np.arange(len(label), dtype=np.int32)
  size = max(2, min(options.batch_size, len(rows)))
  everything = Model(apply, image, label, place, size)
  drawn = everything._replace(
    image=image[rows], label=label[rows], row=place[rows]
  )
  saved = _read(result, image) if result else {}
  known = jax.tree.map(lambda x: x[rows], saved)
  with jax.default_matmul_precision('highest'):
    runs = run_all_pgd(drawn, budget, options)
    own = run_missing(drawn, budget, options, known)
    options.progress.say('noise and the rest')
    scored = (everything, saved), (drawn, with_pgd(runs, own))
    flags = [each[rows] for each in (result.correct if result else {}).values()]
    reported = np.all(flags, axis=0) if flags else None
    evidence = Evidence(
      drawn, budget, options, runs, {**known, **own}, scored, reported
    )
    asked = CHECKS if result else CHECKS[:-1]
    return [judge(check, evidence) for check in asked]


def _prepare(
  apply: Partial, image: np.ndarray, label: np.ndarray, budget: Budget
) -> tuple[np.ndarray, np.ndarray]:
  """Returns float32 images and int32 labels; refuses what does not fit."""
  if np.asarray(image).dtype == np.uint8:
    image = image / np.float32(255)
  image, label = check_images(image, label)
  check_norm(budget.norm, ('linf', 'l2', 'l1'))
  check_epsilon(budget.epsilon)
  like = jax.ShapeDtypeStruct((2, *image.shape[1:]), np.float32)
  shape = jax.eval_shape(apply, like).shape
  if len(shape) != 2 or shape[0] != 2 or shape[1] < 2:
    raise UserError(
      f'the model returns the shape {shape} for 2 images; give a function that '
      'returns logits [2, classes]'
    )
  if label.min() < 0 or label.max() >= shape[1]:
    raise UserError(
      f'the labels range over [{label.min()}, {label.max()}], but the model '
      f'knows {shape[1]} classes; number them from 0'
    )
  return image, label


def _read(result: Result, image: np.ndarray) -> dict[str, Outcome]:
  """Returns single attacks, without the worst cases over several."""
  outcomes = {}
  for name, flags in result.correct.items():
    if name in ('clean', 'robust', *SUITES):
      continue
    adv = result.adv.get(name)
    if flags.shape != image.shape[:1] or flags.dtype != bool:
      raise UserError(
        f'result.correct[{name!r}] is {flags.dtype} {flags.shape}; give one '
        f'bool for each of {len(image)} images'
      )
    if adv is not None and adv.shape != image.shape:
      raise UserError(
        f'result.adv[{name!r}] has shape {adv.shape}, the images '
        f'{image.shape}; give one for each image'
      )
    outcomes[name] = Outcome(flags, adv)
  return outcomes


__all__ = [
  'CHECKS',
  'FULL',
  'LEVELS',
  'Check',
  'Options',
  'Verdict',
  'as_json',
  'as_table',
  'as_text',
  'run',
  'worst',
]
