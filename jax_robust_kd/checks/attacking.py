"""Checks of gradients and attacks: order, convergence, radius, black box."""

import numpy as np

from jax_robust_kd.attacks import Budget
from jax_robust_kd.checks.programs import survives_noise
from jax_robust_kd.checks.report import Check, by_chance, check, grade
from jax_robust_kd.checks.subject import Attacked, Subject, logits, margins
from jax_robust_kd.checks.trials import Effort, Trials, after, survives


def percent(correct: np.ndarray) -> float:
  """Returns the share of True in percent."""
  return 100 * float(np.mean(correct))


def gradients(tried: Trials) -> Check:
  """Whether gradient and loss are exactly 0 where PGD stands, or not finite.

  In float32 the cross-entropy is 0 from a gap of 17 between the two largest
  logits on, its gradient only from 88 on. A loss of 0 at the start is a warning
  where PGD breaks the image all the same, as it does to networks that nobody
  defended; where it does not, the loss may be why.
  """
  at_image, path = tried.one_step, tried.restarts[0]
  correct = path.margin < 0
  starts = (at_image.loss[:, 0] == 0) | (path.loss[:, 0] == 0)
  stays = survives(path)
  value = {
    'zero gradient at the image': percent(at_image.flat[:, 0]),
    'zero gradient on the path': percent(np.any(path.flat & correct, axis=1)),
    'zero loss at the start': percent(starts & stays),
    'zero loss, broken all the same': percent(starts & ~stays),
    'zero loss at the end': percent(after(path, -1) & (path.loss[:, -1] == 0)),
  }
  one = 100 / len(stays)
  limits = ('zero gradient',) * 2 + tuple(value)[2:]
  levels = [
    grade(limit, number, one)
    for limit, number in zip(limits, value.values(), strict=True)
  ]
  return check('gradients', value, *levels)


def epsilon_zero(subject: Subject, tried: Trials) -> Check:
  """Whether PGD without a radius gives the flags of the clean images."""
  clean = margins(logits(subject, subject.image), subject.label) < 0
  differ = percent(clean != tried.curve[0])
  return check(
    'epsilon_zero', {'differ': differ}, grade('epsilon 0 differs', differ)
  )


def one_step(tried: Trials, effort: Effort) -> Check:
  """Whether FGSM >= PGD-10 >= PGD-100 in accuracy, at their last points."""
  path = tried.restarts[0]
  value = {'fgsm': percent(after(tried.one_step, 1))}
  for steps in (min(10, effort.num_steps), effort.num_steps):
    value[f'pgd-{steps}'] = percent(after(path, steps))
  loss = max(0.0, *np.diff(list(value.values())))
  one = 100 / len(path.margin)
  return check('one_step', value, grade('iterating loses', loss, one))


def convergence(tried: Trials, others: np.ndarray, effort: Effort) -> Check:
  """Whether twice the steps break more images than `report.by_chance` allows.

  Args:
    tried: whose first restart is looked at.
    others: [N] bool, correct under all other attacks by gradients; what counts
      is the worst case over them and PGD.
    effort: how many steps.
  """
  path = tried.restarts[0]
  value = {
    f'{n} steps': percent(others & survives(path, n))
    for n in (effort.num_steps, 2 * effort.num_steps)
  }
  gain = -np.diff(list(value.values()))[0]
  level = grade('more steps gain', gain, by_chance(len(others)))
  return check('convergence', value, level)


def restarts(tried: Trials, others: np.ndarray, effort: Effort) -> Check:
  """Whether more random starts break more images; see `convergence`."""
  each = [others & survives(run, effort.num_steps) for run in tried.restarts]
  value = {
    '1 restart': percent(each[0]),
    f'{len(each)} restarts': percent(np.all(each, axis=0)),
  }
  gain = value['1 restart'] - min(value.values())
  level = grade('more restarts gain', gain, by_chance(len(others)))
  return check('restarts', value, level)


def epsilon_curve(subject: Subject, tried: Trials) -> Check:
  """Whether accuracy falls with the radius, and to nothing."""
  num_classes = logits(subject, subject.image).shape[1]
  accuracy = [percent(correct) for correct in tried.curve]
  one = 100 / tried.curve.shape[1]
  value = {
    f'{radius:.3g}': a for radius, a in zip(tried.radii, accuracy, strict=True)
  }
  return check(
    'epsilon_curve',
    value,
    grade('curve rises', max(np.diff(accuracy)), one),
    grade('left without a bound', accuracy[-1], one),
    grade('left above chance', accuracy[-1] - 100 / num_classes, one),
  )


def kind(name: str) -> str:
  """Returns 'square' for 'square-500' and 'autoattack.square'."""
  return name.split('.')[-1].split('-')[0]


def under(attacked: dict[str, Attacked], *kinds: str) -> np.ndarray:
  """Which images stay correct under all attacks of some kinds, [N]."""
  return np.all(
    [a.correct for name, a in attacked.items() if kind(name) in kinds], axis=0
  )


def by_attacks(attacked: dict[str, Attacked]) -> np.ndarray:
  """Which images stay correct under all attacks by gradients, [N]."""
  return under(attacked, *({kind(name) for name in attacked} - {'square'}))


def of_pgd(tried: Trials) -> Attacked:
  """Returns what the first restart of PGD left."""
  first = tried.restarts[0]
  return Attacked(survives(first), first.adv)


def by_gradients(tried: Trials, attacked: dict[str, Attacked]) -> np.ndarray:
  """Which images stay correct under those and PGD, [N]."""
  flags = [survives(run) for run in (tried.one_step, *tried.restarts)]
  return np.all([by_attacks(attacked), *flags], axis=0)


def reported(found: np.ndarray, ours: np.ndarray) -> Check:
  """Whether the attacks of the checks break what an evaluation did not.

  Args:
    found: [N] bool, correct in the worst case of the evaluation.
    ours: [N] bool, from `by_gradients`.
  """
  value = {
    'evaluation': percent(found),
    'with the checks': percent(found & ours),
  }
  gain = value['evaluation'] - value['with the checks']
  level = grade('checks gain', gain, by_chance(len(found)))
  return check('reported', value, level)


def scale(subject: Subject, attacked: dict[str, Attacked]) -> Check:
  """Whether APGD on the cross-entropy misses what targeted APGD breaks."""
  ordered = np.sort(logits(subject, subject.image), axis=1)
  value = {
    'apgd_ce': percent(under(attacked, 'apgd_ce')),
    'with apgd_t': percent(under(attacked, 'apgd_ce', 'apgd_t')),
    'median logit gap': float(np.median(ordered[:, -1] - ordered[:, -2])),
  }
  missed = value['apgd_ce'] - value['with apgd_t']
  level = grade('cross-entropy minus targeted', missed, 100 / len(ordered))
  gap = grade('median logit gap', value['median logit gap'])
  if level == 'red' and gap == 'green':
    level = 'amber'  # the loss is a poor guide, but not for the logits' scale
  return check('scale', value, level, gap)


def targets(tried: Trials, attacked: dict[str, Attacked]) -> Check:
  """Whether attacks on one class each, and those on any, find the same images.

  Both have been run: PGD is without a target, APGD-T with one.
  """
  kinds = {kind(name) for name in attacked}
  aimed = under(attacked, *(k for k in kinds if k.endswith('_t')))
  value = {
    'without targets': percent(
      by_gradients(
        tried, {n: a for n, a in attacked.items() if not kind(n).endswith('_t')}
      )
    ),
    'with targets': percent(aimed),
    'both': percent(aimed & by_gradients(tried, attacked)),
  }
  missed = max(value.values()) - value['both']
  return check('targets', value, grade('one kind alone misses', missed))


def noise(
  subject: Subject,
  budget: Budget,
  effort: Effort,
  seed: int,
  white_box: np.ndarray,
) -> Check:
  """Whether random draws break images that gradients do not.

  Args:
    subject: model and images.
    budget: the threat model.
    effort: how many draws.
    seed: of the draws.
    white_box: [N] bool, from `by_gradients`.
  """
  correct = survives_noise(
    subject, budget.norm, budget.epsilon, effort.num_draws, seed
  )
  return _no_gain('noise', correct, white_box)


def square(attacked: dict[str, Attacked], white_box: np.ndarray) -> Check:
  """Whether Square breaks images that gradients do not."""
  return _no_gain('square', under(attacked, 'square'), white_box)


def _no_gain(name: str, correct: np.ndarray, white_box: np.ndarray) -> Check:
  gain = percent(white_box) - percent(white_box & correct)
  value = {
    'white box': percent(white_box),
    name: percent(correct),
    'broken by it alone': gain,
  }
  level = grade(f'{name} gains', gain, 100 / len(correct))
  return check(name, value, level)
