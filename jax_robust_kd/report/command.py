"""The commands `report` and `table`: pages, model cards, a CSV of many runs."""

import json
from pathlib import Path
import shlex
from typing import Any

from jax_robust_kd import classifier, config, data
from jax_robust_kd.commandline import Args
from jax_robust_kd.config import Config
from jax_robust_kd.core import Progress, RunError, UserError
from jax_robust_kd.evaluation.run import test_split
from jax_robust_kd.report import card, comparison, evidence, page, strips
from jax_robust_kd.report.numbers import differing_settings
from jax_robust_kd.report.reading import RunFiles, read_run
from jax_robust_kd.report.table import as_csv, find_runs
from jax_robust_kd.runtime import console
from jax_robust_kd.runtime.files import read_json
from jax_robust_kd.runtime.imports import short
from jax_robust_kd.threat import make_budget
from jax_robust_kd.training.build import load_data
from jax_robust_kd.workdir import find_workdir, read_config


def report(args: Args) -> int:
  """Runs the command `report`."""
  folders = [find_workdir(name) for name in args.workdir.split(',')]
  for path in write_reports(folders, Progress(say=console.say)):
    console.say(f'written: {path}')
  return 0


def table(args: Args) -> int:
  """Runs the command `table`."""
  folder = find_workdir(args.folder)
  path = Path(args.out or folder / 'results.csv')
  runs = find_runs(folder)
  write_text(path, as_csv(runs))
  console.say(f'written: {path}, {len(runs)} runs')
  return 0


def write_reports(folders: list[Path], progress: Progress) -> list[Path]:
  """Writes report.html of one run, or one page that compares several.

  Args:
    folders: workdirs of evaluated runs. The page of several is written into
      the folder that holds them all.
    progress: told what is measured.

  Returns:
    The files that were written.

  Raises:
    UserError: a run that was not evaluated, or is damaged.
    RunError: a file cannot be written.
  """
  runs = [read_run(folder) for folder in folders]
  if len(runs) == 1:
    return _write_one(runs[0], progress)
  shared = folders[0].resolve().parent
  while not all(f.resolve().is_relative_to(shared) for f in folders):
    shared = shared.parent
  write_text(shared / 'report.html', comparison.several_runs(runs))
  return [shared / 'report.html']


def evaluated_config(run: RunFiles) -> Config:
  """Returns the config of a run with what its last evaluation was asked."""
  c = read_config(run.folder)
  c.eval.update(
    num_examples=run.results['num_examples'],
    checkpoint=run.results['checkpoint'],
    threat='',
    norm=run.results['norm'],
    epsilon=run.results['eps'],
  )
  return c


def _write_one(run: RunFiles, progress: Progress) -> list[Path]:
  c = evaluated_config(run)
  dataset = load_data(c)
  test = test_split(c, dataset)
  model = classifier.load(run.folder, c.eval.checkpoint)
  found = evidence.collect(model, run, test)
  recipe = _recipe(c)
  command = _command(c, run.config, recipe)
  subject = page.Subject(
    run,
    tuple(model.class_names),
    found,
    _curves(run, c, test, progress),
    recipe,
    command,
  )
  written = [run.folder / 'report.html', run.folder / 'MODEL_CARD.md']
  write_text(written[0], page.one_run(subject))
  text = card.model_card(run, command, _sha256(c.teacher.checkpoint))
  write_text(written[1], text)
  for name, shown in found.attacked.items():
    written.append(run.folder / f'{name}.png')
    strips.sheet(shown.adv).save(written[-1])
  return written


def _curves(
  run: RunFiles, c: Config, test: data.Split, progress: Progress
) -> dict[str, dict[str, list[float]]]:
  """Returns the curve of the student, and of its teacher and baseline."""
  budget = make_budget(c)
  if budget.norm not in ('linf', 'l2'):
    return {}
  folders = {run.label: run.folder}
  baseline = short(c.baseline)
  for label, name in (('teacher', 'teacher'), (baseline, baseline)):
    if name and (run.folder / name / 'results.json').exists():
      folders[label] = run.folder / name
  curves = {}
  for label, folder in folders.items():
    model = classifier.load(folder, c.eval.checkpoint)
    telling = Progress(say=lambda text, label=label: progress.say(
      f'{label} {text}'
    ))  # fmt: skip
    curves[label] = evidence.epsilon_curve(model, test, budget, folder, telling)
  return curves


def _recipe(c: Config) -> dict[str, Any]:
  """Returns the method's shipped config for this data set, {} if none fits."""
  try:
    recipe = config.load_config(f'configs/{c.method.name}.py:{c.data.name}')
  except (UserError, KeyError, ValueError):
    return {}
  return json.loads(json.dumps(recipe.to_dict()))


def _command(c: Config, settings: dict, recipe: dict) -> str:
  """Returns the command that makes a run again, '' without a recipe."""
  if not recipe:
    return ''
  words = [f'jax-robust-kd train --config {c.method.name}:{c.data.name}']
  for key, value, _ in differing_settings(settings, recipe):
    words.append(f'--config.{key}={shlex.quote(_as_flag(value))}')
  return ' \\\n  '.join([*words, '--workdir runs/again'])


def _as_flag(value: Any) -> str:
  return str(tuple(value)) if isinstance(value, list) else str(value)


def _sha256(workdir: str) -> str:
  path = Path(workdir) / 'results.json'
  if not workdir or not path.exists():
    return ''
  return str(read_json(path).get('sha256', ''))


def write_text(path: Path, text: str) -> None:
  """Writes a file, whole or not at all.

  Raises:
    RunError: it cannot be written.
  """
  temporary = path.with_name('unfinished.' + path.name)
  try:
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)
  except OSError as error:
    raise RunError(f'{path} cannot be written: {error.strerror}') from error
