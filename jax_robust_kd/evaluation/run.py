"""The evaluation of a finished run, and whether it can be believed."""

from pathlib import Path

from jax.tree_util import Partial
import numpy as np

from jax_robust_kd import checks, data, networks
from jax_robust_kd.attacks import Result
from jax_robust_kd.config import Config
from jax_robust_kd.core import Progress
from jax_robust_kd.evaluation import corruptions, evaluate, results, store
from jax_robust_kd.runtime import console, faults, processes
from jax_robust_kd.runtime.files import write_json
from jax_robust_kd.threat import make_budget


def evaluate_run(
  c: Config, folder: Path, label: str, dataset: data.Dataset
) -> None:
  """Evaluates a trained run on test images; writes results.json."""
  faults.point('evaluate', label=label)
  network = networks.load_network(str(folder), dataset, c.eval.checkpoint)
  evaluate_network(c, folder, label, dataset, network)


def evaluate_network(
  c: Config,
  folder: Path,
  label: str,
  dataset: data.Dataset,
  network: networks.Network,
  source: str = '',
) -> None:
  """Evaluates a network on test images; writes results.json.

  Args:
    c: its groups data, eval and seed count.
    folder: for the files.
    label: in messages.
    dataset: the images.
    network: any with a module.
    source: where it is from, if not a run of `c`.
  """
  test = test_split(c, dataset)
  digest = store.data_sha256(test)
  result = attack(c, folder, label, network, test, digest)
  corrupted = corruptions.measure(
    c, network, lambda text: console.say(f'{label}: corrupted by {text}')
  )
  labels = np.asarray(test.label[np.arange(len(test.label))])
  results.write(
    c,
    folder,
    results.Evaluated(
      network, dataset.name, labels, digest, result, corrupted, source
    ),
  )
  processes.barrier('evaluated')  # from here on the others may read it


def check_run(
  c: Config, folder: Path, label: str, dataset: data.Dataset
) -> str:
  """Prints whether an evaluation can be believed; writes checks.json.

  Returns:
    The worst level: 'green', 'amber' or 'red'.
  """
  network = networks.load_network(str(folder), dataset, c.eval.checkpoint)
  test = test_split(c, dataset)
  images = evaluate.make_images(test)
  report = checks.run(
    Partial(
      evaluate.logits_of(networks.in_precision(network, 'float32')),
      network.variables,
    ),
    images.pixels(np.arange(len(images.label))),
    images.label,
    make_budget(c),
    attack(c, folder, label, network, test),
    checks.Options(
      num_images=c.check.num_images,
      batch_size=c.eval.batch_size,
      seed=c.seed,
      progress=Progress(
        lambda text: console.say(f'{label}: checking with {text}')
      ),
    ),
  )
  console.say(f'can the numbers of {label} be believed?')
  for name, level, numbers, meaning in checks.as_text(report):
    console.say(f'  {level:6} {name:14} {numbers}')
    console.say(f'  {"":21} {meaning}')
  write_json(folder / 'checks.json', checks.as_json(report))
  console.say(f'{checks.worst(report)}; all of it: {folder}/checks.json')
  return checks.worst(report)


def test_split(c: Config, dataset: data.Dataset) -> data.Split:
  """Returns the images to evaluate on, the first of the test split."""
  count = c.eval.num_examples or len(dataset.test.label)
  return data.Split(dataset.test.image[:count], dataset.test.label[:count])


def attack(
  c: Config,
  folder: Path,
  label: str,
  network: networks.Network,
  test: data.Split,
  data_sha256: str = '',
) -> Result:
  """Runs the suite of a config, or reads what is on disk of it.

  Args:
    c: the config.
    folder: workdir of the run.
    label: name of the run in messages.
    network: the trained network.
    test: the images.
    data_sha256: their digest; '' computes it.
  """
  settings = evaluate.Settings(
    tuple(c.eval.suite), make_budget(c), c.seed, c.eval.batch_size
  )
  attacked, precision = None, c.eval.attack_precision
  if precision != 'float32':
    attacked = networks.in_precision(network, precision)
  identity = store.identity(
    network.sha256,
    store.model_identity(network.module),
    data_sha256 or store.data_sha256(test),
    settings.budget,
    settings.seed,
    precision,
  )
  forward = networks.in_precision(network, 'float32')
  steps = evaluate.count_steps(
    settings.suite, settings.budget, network.num_classes
  )
  total = steps * len(test.label)
  done = 0
  with console.progress(f'{label} attacked', 0, total) as update:

    def tick(steps: int) -> None:
      nonlocal done
      done += steps
      update(done, 'steps')

    console.say(
      f'{label}: {", ".join(settings.suite)} on {len(test.label)} test images, '
      f'at most {steps:,} steps each'
    )
    return evaluate.evaluate_suite(
      evaluate.make_victim(forward, network.variables, attacked),
      test,
      settings,
      store.Folder(folder / 'attacked', identity, c.eval.save_images),
      Progress(lambda text: console.say(f'{label}: {text}'), tick),
    )
