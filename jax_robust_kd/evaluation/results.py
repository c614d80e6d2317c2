"""What an evaluation leaves on disk: results.json and a line for each image."""

import csv
from pathlib import Path
import subprocess
from typing import NamedTuple

import jax
import numpy as np

from jax_robust_kd import __version__, models, networks
from jax_robust_kd.attacks import Result
from jax_robust_kd.config import Config
from jax_robust_kd.core import RunError
from jax_robust_kd.evaluation import corruptions, evaluate
from jax_robust_kd.runtime import processes
from jax_robust_kd.runtime.files import write_json
from jax_robust_kd.runtime.imports import short
from jax_robust_kd.threat import threat_model

# RobustBench's keys that a run cannot fill in.
_BY_PEOPLE = ('link', 'authors', 'venue', 'reported', 'external', 'unreliable')


class Evaluated(NamedTuple):
  """A network, the images that it was evaluated on, and the result.

  Attributes:
    network: the network.
    dataset: name of the data set.
    label: [N] labels of the images.
    data_sha256: digest of images and labels.
    result: flags, margins and adversarial images.
    corruptions: accuracy in percent on each corrupted test set.
    source: where the network is from; '': from a run of the config.
  """

  network: networks.Network
  dataset: str
  label: np.ndarray
  data_sha256: str
  result: Result
  corruptions: dict[str, float]
  source: str = ''


def write(c: Config, folder: Path, evaluated: Evaluated) -> None:
  """Writes results.json and images.csv.

  Raises:
    RunError: they cannot be written.
  """
  table = image_table(evaluated.label, evaluated.result)
  write_csv(folder / 'images.csv', table)
  card = make_card(c, evaluated)
  write_json(folder / 'results.json', {**card, 'images': table})


def image_table(label: np.ndarray, result: Result) -> dict[str, list]:
  """Returns columns: id, label, a flag and a margin for each attack.

  A flag is 1 where the image is still classified correctly; it and the margin
  are empty where an image was not attacked any more.
  """
  table: dict[str, list] = {'id': list(range(len(label)))}
  table['label'] = label.tolist()
  for name, margin in result.margin.items():
    attacked = ~np.isnan(margin)
    flags = result.correct[name].astype(int)
    rounded = [round(float(m), 6) for m in margin]
    table[name] = _where(attacked, flags.tolist())
    table[f'{name} margin'] = _where(attacked, rounded)
  table['robust'] = result.correct['robust'].astype(int).tolist()
  return table


def _where(mask: np.ndarray, values: list) -> list:
  return [v if m else None for v, m in zip(values, mask, strict=True)]


def write_csv(path: Path, table: dict[str, list]) -> None:
  """Writes columns as CSV, whole or not at all.

  Raises:
    RunError: it cannot be written.
  """
  if not processes.is_first():
    return
  temporary = path.with_name('unfinished.' + path.name)
  try:
    with temporary.open('w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(table)
      writer.writerows(zip(*table.values(), strict=True))
    temporary.replace(path)
  except OSError as error:
    raise RunError(f'{path} cannot be written: {error.strerror}') from error


def make_card(c: Config, evaluated: Evaluated) -> dict:
  """Returns the card of a run: all of RobustBench's keys, and more.

  What only people know of a run (where it was published, what others report of
  it) is None, as in the cards that RobustBench writes. `additional_data` is
  True where images beside the training set were mixed in; RobustBench does not
  count those of a generator that saw that set alone, so the footnote names
  the file.
  """
  network, correct = evaluated.network, evaluated.result.correct
  count, robust = len(correct['robust']), int(correct['robust'].sum())
  norm, epsilon, _ = threat_model(c)
  accuracy = {
    k: 100 * float(v.mean()) for k, v in correct.items() if k != 'robust'
  }
  # The mean over all kinds and severities, as RobustBench's card has it.
  corrupted = evaluated.corruptions
  complete = corrupted.keys() == set(corruptions.ALL)
  mean = float(np.mean(list(corrupted.values()))) if complete else None
  return {
    'name': evaluated.source or short(c.method.name),
    'dataset': evaluated.dataset,
    'architecture': network.name,
    'parameters': models.num_params(network.variables['params']),
    'norm': norm,
    'eps': epsilon,
    'clean_acc': accuracy.pop('clean'),
    'accuracy': accuracy,
    'robust_accuracy': 100 * robust / count,
    'robust_interval_95': [100 * x for x in evaluate.interval(robust, count)],
    'autoattack_acc': accuracy.get('autoattack'),
    'number_forward_passes': 1,
    'additional_data': bool(c.data.extra.file),
    'footnote': _footnote(c),
    **dict.fromkeys(_BY_PEOPLE),
    'num_examples': count,
    'split': c.data.test_split or 'test',
    'checkpoint': evaluated.source or c.eval.checkpoint,
    'checkpoint_step': network.step,
    'chosen_by': network.chosen_by,
    'teacher': c.teacher.checkpoint or c.teacher.function,
    'seed': c.seed,
    'precision': _precision(c),
    'sha256': network.sha256,
    'data_sha256': evaluated.data_sha256,
    'commit': commit(),
    'version': __version__,
    'jax': jax.__version__,
    'corruptions': corrupted,
    'corruptions_acc': mean,
  }


def _footnote(c: Config) -> str | None:
  extra = c.data.extra
  if not extra.file:
    return None
  labels = "the teacher's" if extra.labels == 'teacher' else 'its own'
  return (
    f'{100 * extra.share:g} % of each batch are images of '
    f'{Path(extra.file).name}, with {labels} labels.'
  )


def _precision(c: Config) -> str:
  scored = 'float32, highest matmul precision'
  if c.eval.attack_precision == 'float32':
    return scored
  return f'attacked in {c.eval.attack_precision}, re-scored in {scored}'


def commit() -> str:
  """Returns the commit of the source, '+' if changed, '' if unknown."""
  source = Path(__file__).parent
  command = ['git', '-C', str(source), 'describe', '--always', '--dirty=+']
  try:
    described = subprocess.run(
      [*command, '--exclude=*'], capture_output=True, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return ''
  return described.stdout.strip()
