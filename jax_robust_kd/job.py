"""One command, the whole job: teacher, student, contrast, evaluation, table."""

import json
import os
from pathlib import Path
import subprocess

import jax
from ml_collections import ConfigDict
import numpy as np

from jax_robust_kd import (
  __version__,
  build,
  console,
  data,
  evaluate,
  models,
  train,
)
from jax_robust_kd import (
  config as config_lib,
)
from jax_robust_kd.config import Config
from jax_robust_kd.core import UserError
from jax_robust_kd.metrics import read_json, write_json


def run(c: Config, workdir: Path, mode: str) -> None:
  """Runs a config: everything it needs, then its evaluation.

  What is done is not done again: the same command goes on where it stopped.

  Args:
    c: the config.
    workdir: for all files of the run.
    mode: 'train' (and evaluate), or 'eval' alone.

  Raises:
    UserError: a mistake of the user's, before anything is compiled.
    RunError: the run cannot go on.
  """
  config_lib.validate(c)
  dataset = build.load_data(c)
  plan = make_plan(c, workdir)
  for each, folder, _ in plan:
    build.check(each, dataset)
    check_workdir(folder, each, mode)
  keep_compiled(workdir / 'compiled')
  for each, folder, label in plan:
    if mode == 'train':
      claim_workdir(folder, each)
      train.train(each, folder, label, dataset)
    evaluate_run(each, folder, label, dataset)
  show_results([(folder, label) for _, folder, label in plan])


def keep_compiled(folder: Path) -> None:
  """Keeps compiled programs, so that a run that goes on starts at once."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    jax.config.update('jax_compilation_cache_dir', str(folder.absolute()))


def make_plan(c: Config, workdir: Path) -> list[tuple[Config, Path, str]]:
  """Returns (config, workdir, label) of every run, in order.

  The teacher comes first when it has to be trained, a contrast last.
  """
  plan = []
  c = copy(c)
  if c.teacher.config and not c.teacher.checkpoint:
    teacher = teacher_config(c)
    plan.append((teacher, workdir / 'teacher', 'teacher'))
    c.teacher.checkpoint = str(workdir / 'teacher')
  plan.append((c, workdir, c.method.name))
  if c.contrast:
    other = copy(c)
    other.method = ConfigDict({'name': c.contrast})
    other.contrast = ''
    plan.append((other, workdir / c.contrast, c.contrast))
  return plan


def copy(c: Config) -> Config:
  """Returns a config of its own, unlocked, with all references resolved."""
  return ConfigDict(c.to_dict())


def teacher_config(c: Config) -> Config:
  """Returns the config that trains the teacher, on the same images."""
  teacher = config_lib.load_config(c.teacher.config)
  keys = 'name data_dir train_split test_split num_train val_size'
  for key in keys.split():
    teacher.data[key] = c.data[key]
  if teacher.teacher.config or teacher.teacher.checkpoint:
    raise UserError(
      f'teacher.config={c.teacher.config} needs a teacher itself; train it '
      'first and set config.teacher.checkpoint'
    )
  return teacher


def check_workdir(folder: Path, c: Config, mode: str) -> None:
  """Refuses a workdir that holds another config or cannot be written."""
  path = folder / 'config.json'
  if path.exists():
    differing = config_lib.differing_keys(read_json(path), as_json(c))
    if mode == 'eval':
      differing = [key for key in differing if not key.startswith('eval.')]
    if differing:
      raise UserError(
        f'{folder} holds a run with another config: {", ".join(differing)} '
        'differ; choose a new --workdir, or set them back to go on'
      )
  elif mode == 'eval':
    raise UserError(f'{folder} has no config.json; train there first')
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / '.writable'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise UserError(
      f'--workdir {folder} cannot be written: {error.strerror}'
    ) from None


def claim_workdir(folder: Path, c: Config) -> None:
  """Writes config.json into a new workdir."""
  if not (folder / 'config.json').exists():
    write_json(folder / 'config.json', as_json(c))


def as_json(c: Config) -> dict:
  """Returns a config as JSON gives it back: tuples as lists."""
  return json.loads(json.dumps(c.to_dict()))


def evaluate_run(
  c: Config, folder: Path, label: str, dataset: data.Dataset
) -> None:
  """Evaluates a trained run on test images; writes results.json."""
  network = build.load_network(str(folder), dataset, c.eval.checkpoint)
  count = c.eval.num_examples or len(dataset.test.label)
  test = dataset.test._replace(
    image=dataset.test.image[:count], label=dataset.test.label[:count]
  )
  budget = build.make_budget(c)
  suite = tuple(c.eval.suite)
  # Kept flags are used again for the very same weights, attack and code only.
  images = as_json(c)['data']
  identity = f'{network.sha256} {budget} {count} {images} {c.seed} {commit()}'

  def show(text: str) -> None:
    console.say(f'{label}: evaluated {text} of {count} test images')

  flags = evaluate.evaluate_suite(
    forward=network.forward,
    variables=network.variables,
    split=test,
    suite=suite,
    budget=budget,
    seed=c.seed,
    batch_size=c.eval.batch_size,
    flags_file=folder / 'robust_flags.npz',
    identity=identity,
    show=show,
  )
  write_json(
    folder / 'results.json', results(c, network, dataset, flags, count)
  )


def results(
  c: Config,
  network: build.Network,
  dataset: data.Dataset,
  flags: dict[str, np.ndarray],
  count: int,
) -> dict:
  """Returns the card of a run: RobustBench's keys where they exist."""
  robust = int(flags['robust'].sum())
  norm, epsilon, _ = config_lib.threat_model(c)
  accuracy = {k: float(v.mean()) for k, v in flags.items() if k != 'robust'}
  return {
    'name': c.method.name,
    'dataset': dataset.name,
    'architecture': network.name,
    'parameters': models.num_params(network.variables['params']),
    'norm': norm,
    'eps': epsilon,
    'clean_acc': 100 * accuracy.pop('clean'),
    'accuracy': {k: 100 * v for k, v in accuracy.items()},
    'robust_accuracy': 100 * robust / count,
    'robust_interval_95': [100 * x for x in evaluate.interval(robust, count)],
    'autoattack_acc': None,
    'number_forward_passes': 1,
    'additional_data': False,
    'num_examples': count,
    'split': c.data.test_split or 'test',
    'checkpoint': c.eval.checkpoint,
    'checkpoint_step': network.step,
    'chosen_by': network.chosen_by,
    'teacher': c.teacher.checkpoint,
    'seed': c.seed,
    'precision': 'float32, highest matmul precision',
    'sha256': network.sha256,
    'commit': commit(),
    'version': __version__,
    'jax': jax.__version__,
  }


def commit() -> str:
  """Returns the commit of the source, '+' if changed, '' if unknown."""
  source = Path(__file__).parent
  command = ['git', '-C', str(source), 'describe', '--always', '--dirty=+']
  try:
    found = subprocess.run(
      [*command, '--exclude=*'], capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return ''
  return found.stdout.strip()


def show_results(runs: list[tuple[Path, str]]) -> None:
  """Prints the table of one or more runs, and where their files are."""
  cards = [(read_json(f / 'results.json'), f, label) for f, label in runs]
  first = cards[0][0]
  attacks = list(dict.fromkeys(a for c, _, _ in cards for a in c['accuracy']))
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
    f'{first["dataset"]}, {first["num_examples"]} test images, '
    f'{first["norm"]} {first["eps"]}, accuracy in %',
    ['', 'parameters', 'clean', *attacks, 'worst case'],
    rows,
  )
  for _, folder, label in cards:
    console.say(f'files of {label}: {folder}/')
