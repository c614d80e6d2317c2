"""From config files to runs: labels, settings, shared teachers."""

from collections.abc import Sequence
import difflib
from pathlib import Path
import re
import runpy
from typing import NamedTuple, NoReturn

from flax.traverse_util import flatten_dict

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, job
from jax_robust_kd import settings as settings_lib
from jax_robust_kd.compare.cost import Cost, count_cost
from jax_robust_kd.config import Config, differing_keys
from jax_robust_kd.config_files import find_files
from jax_robust_kd.core import CLEAN, ROBUST, UserError
from jax_robust_kd.evaluation import corruptions
from jax_robust_kd.runtime import console
from jax_robust_kd.runtime.imports import short
from jax_robust_kd.threat import threat_model
from jax_robust_kd.training import build


class Run(NamedTuple):
  """A run, or a config that has no seed yet.

  Attributes:
    label: its name in the tables.
    config: all its settings.
    folder: its workdir.
    source: the file that the config comes from.
    seed: None for a teacher.
    group: 'teacher' or 'clean_teacher', '' for a student.
    teachers: workdirs of the teachers that are trained first.
    cost: operations of its parts.
  """

  label: str
  config: Config
  folder: Path
  source: str
  seed: int | None = None
  group: str = ''
  teachers: tuple[Path, ...] = ()
  cost: Cost = Cost()


def read_configs(files: Sequence[str]) -> list[tuple[str, str, Config]]:
  """Reads config files, or one Python file that defines `get_runs()`.

  Args:
    files: 'path/to/config.py[:argument]' each.

  Returns:
    (label, file, config) of each, labelled by its method or by `get_runs`.

  Raises:
    UserError: a file is missing or returns something else, or two labels would
      share a folder.
  """
  runs = []
  if len(files) == 1 and Path(files[0]).is_file():
    runs = _call_get_runs(files[0])
  for file in () if runs else files:
    c = config_lib.load_config(file)
    runs.append((short(c.method.name), file, c))
  check_labels([label for label, _, _ in runs])
  return runs


def _call_get_runs(file: str) -> list[tuple[str, str, Config]]:
  """Returns [] where a file does not define `get_runs`."""
  try:
    get_runs = runpy.run_path(file).get('get_runs')
    if get_runs is None:
      return []
    runs = [(str(label), file, job.copy(c)) for label, c in get_runs()]
    for _, _, c in runs:
      find_files(c, Path(file).parent)
    if not runs:
      raise ValueError('there is none')
    return runs
  except UserError:
    raise
  except Exception as error:  # whatever the user's code may raise
    raise UserError(
      f'{file}: get_runs() must return (label, config) pairs; '
      f'{type(error).__name__}: {error}'
    ) from None


def check_labels(labels: list[str]) -> None:
  """Refuses labels that cannot be folders, or share one.

  Raises:
    UserError: there is one.
  """
  folders: dict[str, str] = {}
  for label in labels:
    if not re.fullmatch(r'\w[\w .+()-]*', label):
      raise UserError(
        f'label {label!r} must be of letters, digits, spaces and ._+-()'
      )
    folder = folder_name(label).casefold()
    if folder in folders:
      raise UserError(
        f'two runs are called {folders[folder]!r} and {label!r}; give them '
        'other labels in a file that defines get_runs()'
      )
    folders[folder] = label


def folder_name(label: str) -> str:
  """Returns the name of the folder of a label."""
  return label.replace(' ', '_')


def override(c: Config, settings: Sequence[str], label: str) -> Config:
  """Returns a config with settings changed, as the command line does.

  Args:
    c: the config, unchanged.
    settings: 'GROUP.KEY=VALUE' each.
    label: what the config is called in messages.

  Raises:
    UserError: an unknown key, or a value of the wrong type.
  """
  for setting in settings:
    config_lib.refuse_old_name(setting.partition('=')[0])
    if setting.startswith('seed='):
      raise UserError(f'--config.{setting}: give --seeds instead')
  words = [f'--config.{setting}' for setting in settings]
  try:
    return job.copy(settings_lib.override(job.copy(c), words))
  except UserError as error:
    known = list(flatten_dict(c.to_dict(), sep='.'))
    for key in [setting.partition('=')[0] for setting in settings]:
      if key not in known:
        _refuse_key(key, known, label)
    raise UserError(f'{label!r}: {error}') from None


def _refuse_key(key: str, known: list[str], label: str) -> NoReturn:
  near = difflib.get_close_matches(key, known, 1, cutoff=0.75)
  group = [k for k in known if k.startswith(key.rpartition('.')[0] + '.')]
  hint = f'there are: {", ".join(group or known)}'
  if near:
    hint = f'did you mean {near[0]}?'
  raise UserError(f'--config.{key} is not a setting of {label!r}; {hint}')


def plan_runs(
  files: Sequence[str], settings: Sequence[str], workdir: Path
) -> tuple[list[Run], list[Run]]:
  """Reads all configs and checks what can be checked without running.

  Args:
    files: see `read_configs`.
    settings: 'GROUP.KEY=VALUE' of all configs.
    workdir: of the comparison.

  Returns:
    The teachers to train, and the students without seeds.

  Raises:
    UserError: the first mistake.
  """
  configs = {
    label: (file, override(c, settings, label))
    for label, file, c in read_configs(files)
  }
  check_threats({label: c for label, (_, c) in configs.items()})
  datasets: dict[str, data.Dataset] = {}
  teachers: list[Run] = []
  students = []
  for label, (file, c) in configs.items():
    c.baseline = ''  # the other configs are
    config_lib.validate(c)
    dataset = _load_data(c, datasets)
    build.check(c, dataset)
    corruptions.chosen(c.eval.corruptions)
    c, needed = share_teachers(c, workdir, teachers)
    console.say(f'counting the cost of {label}')
    cost = count_cost(c, dataset, {t.group: t.config for t in needed})
    folder = workdir / 'runs' / folder_name(label)
    folders = tuple(t.folder for t in needed)
    students.append(Run(label, c, folder, file, None, '', folders, cost))
  for place, teacher in enumerate(teachers):
    dataset = _load_data(teacher.config, datasets)
    build.check(teacher.config, dataset)
    cost = count_cost(teacher.config, dataset, {})
    teachers[place] = teacher._replace(cost=cost)
  return teachers, students


def _load_data(c: Config, datasets: dict[str, data.Dataset]) -> data.Dataset:
  """Returns the data set of a config, read once for all that share it."""
  fields = c.data.to_dict()
  del fields['augment'], fields['batch_size']
  key = str(sorted(fields.items()))
  if key not in datasets:
    datasets[key] = build.load_data(c)
  return datasets[key]


def check_threats(configs: dict[str, Config]) -> None:
  """Refuses configs that are not evaluated in one threat model.

  Raises:
    UserError: two differ in norm or radius.
  """
  threats = {label: threat_model(c)[:2] for label, c in configs.items()}
  first, (norm, epsilon) = next(iter(threats.items()))
  for label, threat in threats.items():
    if threat != (norm, epsilon):
      raise UserError(
        f'{label} would be attacked with {threat[0]} {threat[1]} in the end, '
        f'{first} with {norm} {epsilon}; set --config.eval.norm={norm} '
        f'--config.eval.epsilon={epsilon} for all'
      )


def share_teachers(
  c: Config, workdir: Path, teachers: list[Run]
) -> tuple[Config, list[Run]]:
  """Finds the teachers that a config wants trained among those of all.

  Args:
    c: the config.
    workdir: of the comparison.
    teachers: those of the configs before; new ones are added.

  Returns:
    The config, with their workdirs as checkpoints, and its teachers.
  """
  c = job.copy(c)
  for name in {ROBUST, CLEAN} - set(build.make_method(c).teachers):
    config_lib.teacher_group(c, name)[1].config = ''
  *planned, (student, _, _) = job.make_plan(c, workdir)
  needed = []
  for config, folder, _ in planned:
    evaluate_alike(config, c)
    same = [t for t in teachers if _is_same(t, config, folder.name)]
    if not same:
      number = 1 + sum(t.group == folder.name for t in teachers)
      name = folder.name if number == 1 else f'{folder.name}-{number}'
      source = c[folder.name].config
      same = [
        Run(
          name.replace('_', ' '), config, workdir / name, source,
          group=folder.name,
        )
      ]  # fmt: skip
      teachers += same
    needed += same
    student[folder.name].checkpoint = str(same[0].folder)
  return student, needed


def _is_same(teacher: Run, config: Config, group: str) -> bool:
  keys = differing_keys(teacher.config.to_dict(), config.to_dict())
  evaluation = ('validation.', 'eval.', 'check.')
  return teacher.group == group and all(k.startswith(evaluation) for k in keys)


def evaluate_alike(teacher: Config, student: Config) -> None:
  """Has a teacher evaluated as its student is."""
  checkpoint = teacher.eval.checkpoint
  teacher.eval.update(student.eval)
  teacher.eval.checkpoint = checkpoint
  teacher.validation.attack = student.validation.attack
  teacher.check.update(student.check)
  norm, epsilon, step_size = threat_model(student)
  teacher.eval.update(norm=norm, epsilon=epsilon, step_size=step_size)


def with_seed(run: Run, seed: int) -> Run:
  """Returns the run of a config with a seed."""
  c = job.copy(run.config)
  c.seed = seed
  return run._replace(config=c, seed=seed, folder=run.folder / f'seed-{seed}')
