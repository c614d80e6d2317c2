"""From entries to runs: configs, shared teachers, equal budgets."""

from pathlib import Path
from typing import Any, NamedTuple

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, job
from jax_robust_kd import main as program
from jax_robust_kd.compare import entries as entry_lib
from jax_robust_kd.compare import tables, workload
from jax_robust_kd.compare.entries import Entry
from jax_robust_kd.config import Config, differing_keys
from jax_robust_kd.core import CLEAN, ROBUST, UserError
from jax_robust_kd.evaluation import corruptions
from jax_robust_kd.runtime import console
from jax_robust_kd.threat import threat_model
from jax_robust_kd.training import build


class Planned(NamedTuple):
  """A run, or an entry before it has a seed.

  Attributes:
    label: in the tables.
    seed: None for a teacher.
    spec: its config file and argument.
    config: the whole config.
    folder: its workdir.
    group: 'teacher' or 'clean_teacher', '' for an entry.
    needs: folders of the teachers to train before.
    load: what its parts cost.
  """

  label: str
  seed: int | None
  spec: str
  config: Config
  folder: Path
  group: str = ''
  needs: tuple[Path, ...] = ()
  load: Any = workload.Load(0, 0, 0, 0, 0, 0)


def load_entry(entry: Entry, shared: list[str]) -> tuple[str, Config]:
  """Reads the config of an entry, by the program's own rules.

  Returns:
    Its label, and the config with the settings of all and its own.

  Raises:
    UserError: no such file, an unknown key, a value of the wrong type, or a
      setting that belongs to the comparison.
  """
  where = f'entry {entry.label or entry.spec!r}'
  config_lib.load_config(entry.spec)  # says what is wrong with the file
  flags = [f'--config={locate(entry.spec)}', '--workdir=-']
  known = _dotted(program.parse(['', *flags]).config.to_dict())
  for override in (*shared, *entry.overrides):
    key, _, value = (part.strip() for part in override.partition('='))
    if key == 'seed':
      raise UserError(f'{where}: seed={value} is for --seeds to say')
    entry_lib.check_key(where, key, known)
    flags.append(f'--config.{key}={value}')
  try:
    c = job.copy(program.parse(['', *flags]).config)
  except UserError as error:
    raise UserError(f'{where}: {error}') from None
  c.contrast = ''  # the other entries are
  own = [override.rpartition('.')[2] for override in entry.overrides]
  return entry.label or ' '.join([c.method.name, *own]), c


def locate(spec: str) -> str:
  """Returns a config's path from here, or from the folder of the project."""
  project = Path(__file__).parents[2] / spec
  here = Path(spec.partition(':')[0]).is_file()
  return spec if here else str(project)


def _dotted(group: dict, prefix: str = '') -> list[str]:
  names = []
  for key, value in group.items():
    inner = isinstance(value, dict)
    name = f'{prefix}{key}'
    names += _dotted(value, name + '.') if inner else [name]
  return names


def flags_for(spec: str, wanted: Config) -> list[str]:
  """Returns the flags of the main program that make a config of a file."""
  loaded, wanted = config_lib.load_config(spec).to_dict(), wanted.to_dict()
  flags = [f'--config={locate(spec)}']
  for name in differing_keys(loaded, wanted):
    value = wanted
    for key in name.split('.'):
      value = value[key]
    flags.append(f'--config.{name}={value}')
  return flags


def share_teachers(
  c: Config, workdir: Path, known: list[Planned]
) -> tuple[Config, dict[str, Planned]]:
  """Finds the teachers that a config wants trained among those of all.

  Args:
    c: the config of an entry.
    workdir: of the comparison.
    known: the teachers so far; new ones are added.

  Returns:
    The config, with their folders as checkpoints, and the teachers by group.
  """
  asked = build.make_method(c).teachers
  for name in {ROBUST, CLEAN} - set(asked):
    config_lib.teacher_group(c, name)[1].config = ''
  *wanted, (own, _, _) = job.make_plan(c, workdir)
  mine = {}
  for config, folder, _ in wanted:
    group = folder.name
    spec = c[group].config
    judge_alike(config, c)
    for teacher in known:
      names = differing_keys(teacher.config.to_dict(), config.to_dict())
      if all(n.startswith('eval.') for n in names) and teacher.group == group:
        break
    else:
      number = 1 + sum(t.group == group for t in known)
      label = f'{group}-{number}' if number > 1 else group
      teacher = Planned(
        label.replace('_', ' '), None, spec, config, workdir / label, group
      )
      known.append(teacher)
    mine[group] = teacher
    own[group].checkpoint = str(teacher.folder)
  return own, mine


def judge_alike(teacher: Config, c: Config) -> None:
  """Has a teacher evaluated as its students are."""
  ours = {k: teacher.eval[k] for k in ('every_epochs', 'checkpoint')}
  teacher.eval.update({**c.eval.to_dict(), **ours})
  norm, epsilon, step_size = threat_model(c)
  teacher.eval.update(norm=norm, epsilon=epsilon, step_size=step_size)


def plan_entries(
  given: list[Entry], shared: list[str], workdir: Path
) -> tuple[list[Planned], list[Planned]]:
  """Reads all entries and checks what can be checked without running.

  Args:
    given: the entries as they were written.
    shared: settings of all, KEY=VALUE.
    workdir: of the comparison.

  Returns:
    The teachers to train, and the entries, each with its own epochs and cost.

  Raises:
    UserError: the first mistake.
  """
  loaded = [load_entry(entry, shared) for entry in given]
  entry_lib.check_labels([label for label, _ in loaded])
  check_threats(dict(loaded))
  teachers: list[Planned] = []
  entries, sets = [], {}
  for entry, (label, c) in zip(given, loaded, strict=True):
    config_lib.validate(c)
    dataset = _dataset(c, sets)
    build.check(c, dataset)
    corruptions.chosen(c.eval.corruptions)
    own, mine = share_teachers(c, workdir, teachers)
    folder = workdir / 'runs' / entry_lib.folder_name(label)
    console.say(f'counting what a step of {label} costs')
    entries.append(
      Planned(
        label, None, entry.spec, own, folder, '',
        tuple(t.folder for t in mine.values()),
        workload.count(own, dataset, {g: t.config for g, t in mine.items()}),
      )
    )  # fmt: skip
  for teacher in teachers:
    build.check(teacher.config, _dataset(teacher.config, sets))
  return [
    t._replace(load=workload.count(t.config, _dataset(t.config, sets), {}))
    for t in teachers
  ], entries


def _dataset(c: Config, sets: dict) -> data.Dataset:
  """Returns the data set of a config, read once for all that share it."""
  fields = c.data.to_dict()
  key = str(
    {k: fields[k] for k in fields if k not in ('augment', 'batch_size')}
  )
  if key not in sets:
    sets[key] = build.load_data(c)
  return sets[key]


def check_threats(configs: dict[str, Config]) -> None:
  """Refuses entries that are not attacked alike in the end.

  Raises:
    UserError: two differ in norm or radius.
  """
  first, *others = configs
  norm, epsilon, _ = threat_model(configs[first])
  for label in others:
    found = threat_model(configs[label])[:2]
    if found != (norm, epsilon):
      raise UserError(
        f'{label} would be attacked with {found[0]} {found[1]} in the end, '
        f'{first} with {norm} {epsilon}; set --config.eval.norm={norm} '
        f'--config.eval.epsilon={epsilon} for all'
      )


def spend_alike(entries: list[Planned], budget: str) -> list[str]:
  """Sets the epochs of every entry; returns what else sets them apart."""
  own = [entry.config.optimizer.epochs for entry in entries]
  epochs = tables.match_budget(
    budget, own, [entry.load.passes for entry in entries]
  )
  notes = []
  for entry, before, count in zip(entries, own, epochs, strict=True):
    entry.config.optimizer.epochs = count
    if budget == 'epochs' and before != count:
      notes.append(
        f'{entry.label} trains for {count} epochs, not the {before} of its '
        'config; --budget own leaves them'
      )
  configs, asked = {}, {}
  for entry in entries:
    c = job.as_json(entry.config)
    parts = ('norm', 'epsilon', 'step_size')
    judged = zip(parts, threat_model(entry.config), strict=True)
    c['eval'] |= {**dict(judged), 'threat': ''}
    configs[entry.label] = c
    names = build.make_method(entry.config).teachers
    asked[entry.label] = {
      config_lib.teacher_group(entry.config, name)[0] for name in names
    }
  return notes + tables.differences(configs, asked, budget)


def with_seed(entry: Planned, seed: int) -> Planned:
  """Returns the run of an entry with a seed."""
  c = job.copy(entry.config)
  c.seed = seed
  return entry._replace(
    config=c, seed=seed, folder=entry.folder / f'seed-{seed}'
  )
