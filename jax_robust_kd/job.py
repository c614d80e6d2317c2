"""One command, the whole job: teacher, student, baseline, evaluation, table."""

import contextlib
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jax_robust_kd import (
  config as config_lib,
)
from jax_robust_kd import data, settings
from jax_robust_kd.config import Config
from jax_robust_kd.core import ROBUST, UserError
from jax_robust_kd.evaluation import corruptions
from jax_robust_kd.evaluation.run import check_run, evaluate_run
from jax_robust_kd.runtime import console, lock
from jax_robust_kd.runtime.files import read_json
from jax_robust_kd.runtime.imports import short
from jax_robust_kd.training import build
from jax_robust_kd.training.run import train
from jax_robust_kd.workdir import check_workdir


def run(c: Config, workdir: Path, mode: str) -> str:
  """Runs a config: everything it needs, then its evaluation.

  What is done is not done again: the same command goes on where it stopped.

  Args:
    c: the config.
    workdir: for all files of the run.
    mode: 'train' (and evaluate), 'eval' alone, or 'check': evaluate, and say
      whether the numbers can be believed.

  Returns:
    'red' where a check says that they cannot.

  Raises:
    UserError: a mistake of the user's, before anything is compiled.
    RunError: the run cannot go on.
  """
  config_lib.validate(c)
  dataset = build.load_data(c)
  plan = make_plan(c, workdir)
  for each, folder, _ in plan:
    build.check(each, dataset, mode)
    corruptions.chosen(each.eval.corruptions)
    check_workdir(folder, each, mode)
  keep_compiled(workdir / 'compiled')
  with contextlib.ExitStack() as stack:
    for _, folder, _ in plan:
      stack.enter_context(lock.held(folder))
    return _run(c, workdir, mode, plan, dataset)


def _run(
  c: Config, workdir: Path, mode: str, plan: list, dataset: data.Dataset
) -> str:
  for each, folder, label in plan:
    if mode == 'train':
      train(each, folder, label, dataset)
    evaluate_run(each, folder, label, dataset)
  show_results([(folder, label) for _, folder, label in plan])
  if mode != 'check':
    return ''
  return check_run(c, workdir, short(c.method.name), dataset)


def keep_compiled(folder: Path) -> None:
  """Keeps compiled programs, so that a run that goes on starts at once."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', str(folder.absolute()))


def make_plan(c: Config, workdir: Path) -> list[tuple[Config, Path, str]]:
  """Returns (config, workdir, label) of every run, in order.

  The teacher comes first when it has to be trained, a baseline last.
  """
  plan = []
  c = copy(c)
  baseline = ConfigDict({'method': {'name': c.baseline or c.method.name}})
  asked = (
    *build.make_method(c).teachers,
    *build.make_method(baseline).teachers,
  )
  for name in dict.fromkeys(asked):
    group, given = config_lib.teacher_group(c, name)
    if config_lib.is_trained_first(given):
      label = group.replace('_', ' ')
      plan.append((teacher_config(c, name), workdir / group, label))
      given.checkpoint, given.set = str(workdir / group), {}
  plan.append((c, workdir, short(c.method.name)))
  if c.baseline:
    other = copy(c)
    other.method = ConfigDict({'name': c.baseline})
    other.baseline = ''
    label = short(c.baseline)
    plan.append((other, workdir / label, label))
  return plan


def copy(c: Config) -> Config:
  """Returns a config of its own, unlocked, with all references resolved."""
  return ConfigDict(c.to_dict())


def teacher_config(c: Config, name: str = ROBUST) -> Config:
  """Returns the config that trains a teacher.

  It takes the student's images and suite; then `teacher.set` counts.

  Raises:
    UserError: `teacher.set` names no setting of it, or other images.
  """
  group, given = config_lib.teacher_group(c, name)
  teacher = config_lib.load_config(given.config)
  images = set(c.data.keys()) - {'batch_size', 'augment', 'extra'}
  for key in images:
    teacher.data[key] = c.data[key]
  teacher.eval.suite = c.eval.suite
  changes = settings.flat(given.set)
  for key in {f'data.{key}' for key in images} & changes.keys():
    raise UserError(
      f'{group}.set.{key} would give the teacher other images than the '
      f'student; set {key}'
    )
  if changes:
    words = [f'--config.{key}={value}' for key, value in changes.items()]
    teacher = settings.override(teacher, words)
  if teacher.teacher.config or teacher.teacher.checkpoint:
    raise UserError(
      f'{group}.config={given.config} needs a teacher itself; train it first '
      f'and set config.{group}.checkpoint'
    )
  return teacher


def show_results(runs: list[tuple[Path, str]]) -> None:
  """Prints the table of one or more runs, and where their files are."""
  cards = [(read_json(f / 'results.json'), f, label) for f, label in runs]
  first = cards[0][0]
  # They differ where only one of the runs was evaluated again.
  different = sorted({c['num_examples'] for c, _, _ in cards})
  counts = ' or '.join(map(str, different))
  attacks = list(
    dict.fromkeys(a for c, _, _ in cards for a in c['accuracy'] if '.' not in a)
  )
  rows = []
  for card, _, label in cards:
    under = [card['accuracy'].get(a) for a in attacks]
    rows.append(
      [
        label,
        f'{card["parameters"]:,}',
        f'{card["clean_acc"]:.1f}',
        *('' if x is None else f'{x:.1f}' for x in under),
        f'{card["robust_accuracy"]:.1f}',
      ]
    )
  console.table(
    f'{first["dataset"]}, {counts} test images, '
    f'{first["norm"]} {first["eps"]}, accuracy in %',
    ['', 'parameters', 'clean', *attacks, 'worst case'],
    rows,
  )
  for _, folder, label in cards:
    console.say(f'files of {label}: {folder}/')
