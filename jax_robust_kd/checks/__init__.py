"""Whether a robustness evaluation can be believed: green, amber, red.

  checks.run(apply, image, label, budget=Budget('linf', 8 / 255, 2 / 255))

takes any function from images to logits. What it says about its own attacks
holds for the images that it draws; see `report.LIMITS` for where green ends.
"""

from collections.abc import Callable

import jax
from jax.tree_util import Partial
import numpy as np

from jax_robust_kd.attacks import SUITES, Budget, Result
from jax_robust_kd.attacks.ascent import check_norm
from jax_robust_kd.attacks.autoattack import check_images
from jax_robust_kd.attacks.gradient import check_epsilon
from jax_robust_kd.checks import attacking, basic
from jax_robust_kd.checks.programs import ATTACKS, attack
from jax_robust_kd.checks.report import (
  LEVELS,
  LIMITS,
  Check,
  as_json,
  as_text,
  worst,
)
from jax_robust_kd.checks.subject import Attacked, Subject
from jax_robust_kd.checks.trials import (
  FULL,
  Effort,
  Trials,
  run_trials,
)
from jax_robust_kd.core import Array, UserError


def run(
  apply: Callable[[Array], Array],
  image: np.ndarray,
  label: np.ndarray,
  *,
  budget: Budget,
  seed: int = 0,
  found: Result | None = None,
  batch_size: int = 100,
  effort: Effort = FULL,
  show: Callable[[str], None] = lambda text: None,
) -> list[Check]:
  """Checks a model and, if given, what an evaluation found about it.

  Attacks that `found` lacks are run here, all in the highest matmul precision.

  Args:
    apply: [B, H, W, C] float32 in [0, 1] -> logits [B, K]; anything that JAX
      can trace. Large weights belong in a `jax.tree_util.Partial`, as they are
      constants of every program otherwise.
    image: [N, H, W, C] uint8, or float in [0, 1].
    label: [N] integers.
    budget: norm, radius and number of targets; steps are those of `effort`.
    seed: of the choice of images and of the attacks.
    found: of the same images in their order. Its apgd_ce, apgd_t and square,
      in any suite and of any length, are not run again; all but square count as
      attacks by gradients. Its adversarial images are all scored again.
    batch_size: images of a call.
    effort: how long to attack.
    show: told what is being run.

  Returns:
    The checks, each with its level.

  Raises:
    UserError: arrays or budget do not fit.
  """
  image, label = _prepare(apply, image, label, budget)
  random = np.random.default_rng(seed)
  rows = np.sort(random.permutation(len(label))[: effort.num_images])
  apply = apply if isinstance(apply, Partial) else Partial(apply)
  size = max(2, min(batch_size, len(rows)))
  place = np.arange(len(label), dtype=np.int32)
  whole = Subject(apply, image, label, place, size)
  subject = Subject(apply, image[rows], label[rows], place[rows], size)
  saved = _read(found, image) if found else {}
  before = jax.tree.map(lambda x: x[rows], saved)
  with jax.default_matmul_precision('highest'):
    tried = run_trials(subject, budget, effort, seed, show)
    ours = _attack(subject, budget, seed, before, effort, show)
    attacked = {**before, **ours}
    show('noise and the rest')
    checks = _report(subject, tried, attacked, budget, effort, seed)
    own = {**ours, 'PGD': attacking.of_pgd(tried)}
    checks += _of_images(budget, (whole, saved), (subject, own))
  if found:
    flags = [np.asarray(each)[rows] for each in found.correct.values()]
    white_box = attacking.by_gradients(tried, attacked)
    checks.append(attacking.reported(np.all(flags, axis=0), white_box))
  return checks


def _prepare(
  apply: Callable, image: np.ndarray, label: np.ndarray, budget: Budget
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
      f'apply returns the shape {shape} for 2 images; give a function that '
      'returns logits [2, classes]'
    )
  if label.min() < 0 or label.max() >= shape[1]:
    raise UserError(
      f'label ranges over [{label.min()}, {label.max()}], but apply knows '
      f'{shape[1]} classes; number them from 0'
    )
  return image, label


def _read(found: Result, image: np.ndarray) -> dict[str, Attacked]:
  """Returns single attacks; what is the worst case of several is left out."""
  attacked = {}
  for name, flags in found.correct.items():
    if name in ('clean', 'robust', *SUITES):
      continue
    adv = found.adv.get(name)
    if flags.shape != image.shape[:1] or flags.dtype != bool:
      raise UserError(
        f'found.correct[{name!r}] is {flags.dtype} {flags.shape}; give one '
        f'bool for each of {len(image)} images'
      )
    if adv is not None and adv.shape != image.shape:
      raise UserError(
        f'found.adv[{name!r}] has shape {adv.shape}, image {image.shape}; '
        'give one for each image'
      )
    attacked[name] = Attacked(flags, adv)
  return attacked


def _attack(
  subject: Subject,
  budget: Budget,
  seed: int,
  attacked: dict[str, Attacked],
  effort: Effort,
  show: Callable[[str], None],
) -> dict[str, Attacked]:
  """Runs those of ATTACKS that are lacking."""
  lacking = ATTACKS.keys() - {attacking.kind(name) for name in attacked}
  more = {}
  for name in sorted(lacking):
    show(name)
    steps = effort.num_queries if name == 'square' else effort.num_steps
    its_budget = budget._replace(num_steps=steps, num_restarts=1, num_eot=1)
    more[name] = attack(subject, name, its_budget, seed)
  return more


def _report(
  subject: Subject,
  tried: Trials,
  attacked: dict[str, Attacked],
  budget: Budget,
  effort: Effort,
  seed: int,
) -> list[Check]:
  """Looks at what was run; only noise is run here."""
  others = attacking.by_attacks(attacked)
  white_box = attacking.by_gradients(tried, attacked)
  every = {**attacked, 'PGD': attacking.of_pgd(tried)}
  return [
    basic.clean(subject),
    basic.determinism(subject),
    basic.batches(subject),
    basic.are_logits(subject),
    attacking.scale(subject, attacked),
    attacking.targets(tried, attacked),
    attacking.gradients(tried),
    attacking.epsilon_zero(subject, tried),
    attacking.one_step(tried, effort),
    attacking.convergence(tried, others, effort),
    attacking.restarts(tried, others, effort),
    attacking.epsilon_curve(subject, tried),
    attacking.noise(subject, budget, effort, seed, white_box),
    attacking.square(attacked, white_box),
    basic.precision(subject, every),
  ]


def _of_images(
  budget: Budget, *each: tuple[Subject, dict[str, Attacked]]
) -> list[Check]:
  """Looks at all adversarial images there are."""
  return [
    basic.box(*each, norm=budget.norm, epsilon=budget.epsilon),
    basic.rescoring(*each),
  ]


__all__ = [
  'ATTACKS',
  'LEVELS',
  'LIMITS',
  'Check',
  'FULL',
  'Effort',
  'as_json',
  'as_text',
  'run',
  'worst',
]
