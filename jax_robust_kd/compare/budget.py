"""One budget for all runs, and what else sets them apart."""

from flax.traverse_util import flatten_dict

from jax_robust_kd import config as config_lib
from jax_robust_kd import job
from jax_robust_kd.compare.configs import Run
from jax_robust_kd.config import Config, differing_keys
from jax_robust_kd.threat import threat_model
from jax_robust_kd.training import build
from jax_robust_kd.workdir import as_json

BUDGETS = ('epochs', 'passes', 'own')
# What makes one method another, besides its teachers.
MAY_DIFFER = (
  'method.',
  'data.augment.',
  'train_attack.',
  'optimizer.',
  'seed.',
)


def match_epochs(
  budget: str, epochs: list[int], passes: list[float]
) -> list[int]:
  """Returns the epochs of each config; the first one's budget is everyone's.

  Args:
    budget: 'epochs', 'passes' (epochs x passes per step is the same, as near
      as whole epochs come) or 'own', to leave each as its config says.
    epochs: of each config.
    passes: forward passes of the student that a training step costs.
  """
  if budget == 'own':
    return epochs
  if budget == 'epochs':
    return [epochs[0]] * len(epochs)
  return [max(1, round(epochs[0] * passes[0] / p)) for p in passes]


def match_budgets(runs: list[Run], budget: str) -> list[str]:
  """Sets the epochs of every run; returns what else sets the runs apart."""
  before = [run.config.optimizer.epochs for run in runs]
  after = match_epochs(budget, before, [run.cost.passes for run in runs])
  notes = []
  for run, old, new in zip(runs, before, after, strict=True):
    run.config.optimizer.epochs = new
    if budget == 'epochs' and old != new:
      notes.append(
        f'{run.label} trains for {new} epochs, not the {old} of its config; '
        '--budget own leaves them'
      )
  return notes + describe_differences(runs, budget)


def describe_differences(runs: list[Run], budget: str) -> list[str]:
  """Returns a line for each run that differs in more than its method."""
  configs = [_comparable(run.config) for run in runs]
  groups = [_teacher_groups(run.config) for run in runs]
  lines = []
  for run, config, group in zip(runs, configs, groups, strict=True):
    keys = [
      f'{key} is {config.get(key)!r}, not {configs[0].get(key)!r}'
      for key in differing_keys(configs[0], config)
      if _matters(key, group & groups[0], budget)
    ]
    if keys:
      lines.append(
        f'{run.label} differs from {runs[0].label} not only as a method: '
        f'{", ".join(keys)}'
      )
  return lines


def _comparable(c: Config) -> dict:
  c = job.copy(c)
  norm, epsilon, step_size = threat_model(c)
  c.eval.update(norm=norm, epsilon=epsilon, step_size=step_size, threat='')
  return flatten_dict(as_json(c), sep='.')


def _teacher_groups(c: Config) -> set[str]:
  names = build.make_method(c).teachers
  return {config_lib.teacher_group(c, name)[0] for name in names}


def _matters(key: str, teachers: set[str], budget: str) -> bool:
  group = key.partition('.')[0]
  if key == 'optimizer.epochs':
    return budget != 'passes'
  if group in ('teacher', 'clean_teacher'):
    return group in teachers
  return not f'{key}.'.startswith(MAY_DIFFER)
