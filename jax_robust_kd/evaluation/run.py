"""The evaluation of a finished run, and whether it can be believed."""

from pathlib import Path

from jax.tree_util import Partial
import numpy as np

from jax_robust_kd import checks, data, networks
from jax_robust_kd.attacks import Result
from jax_robust_kd.config import Config
from jax_robust_kd.evaluation import corruptions, evaluate, results
from jax_robust_kd.runtime import console, faults, processes
from jax_robust_kd.runtime.files import write_json
from jax_robust_kd.threat import make_budget
from jax_robust_kd.workdir import as_json


def evaluate_run(
  c: Config, folder: Path, label: str, dataset: data.Dataset
) -> None:
  """Evaluates a trained run on test images; writes results.json."""
  faults.point('evaluate', label=label)
  network = networks.load_network(str(folder), dataset, c.eval.checkpoint)
  test = test_images(c, dataset)
  found = attack(c, folder, label, network, test)
  corrupted = corruptions.measure(
    c, network, lambda text: console.say(f'{label}: corrupted by {text}')
  )
  results.write(c, folder, network, dataset, test, found, corrupted)
  processes.barrier('evaluated')  # from here on the others may read it


def check_run(
  c: Config, folder: Path, label: str, dataset: data.Dataset
) -> str:
  """Prints whether an evaluation can be believed; writes checks.json.

  Returns:
    The worst level: 'green', 'amber' or 'red'.
  """
  network = networks.load_network(str(folder), dataset, c.eval.checkpoint)
  test = test_images(c, dataset)
  report = checks.run(
    Partial(
      evaluate.logits_of(networks.in_precision(network, 'float32')),
      network.variables,
    ),
    evaluate.pixels(test, np.arange(len(test.label))),
    np.asarray(test.label[np.arange(len(test.label))]),
    budget=make_budget(c),
    seed=c.seed,
    found=attack(c, folder, label, network, test),
    batch_size=c.eval.batch_size,
    effort=checks.Effort(num_images=c.eval.num_checked),
    show=lambda text: console.say(f'{label}: checking with {text}'),
  )
  console.say(f'can the numbers of {label} be believed?')
  for name, level, numbers, meaning in checks.as_text(report):
    console.say(f'  {level:6} {name:14} {numbers}')
    console.say(f'  {"":21} {meaning}')
  write_json(folder / 'checks.json', checks.as_json(report))
  console.say(f'{checks.worst(report)}; all of it: {folder}/checks.json')
  return checks.worst(report)


def test_images(c: Config, dataset: data.Dataset) -> data.Split:
  """Returns the images to evaluate on, the first of the test split."""
  count = c.eval.num_examples or len(dataset.test.label)
  return data.Split(dataset.test.image[:count], dataset.test.label[:count])


def attack(
  c: Config,
  folder: Path,
  label: str,
  network: networks.Network,
  test: data.Split,
) -> Result:
  """Runs the suite of a config, or reads what is on disk of it."""
  budget = make_budget(c)
  count = len(test.label)
  # What is kept counts for the very same weights, attack and code only.
  images = as_json(c)['data']
  identity = (
    f'{network.sha256} {budget} {count} {images} {c.seed} '
    f'{c.eval.attack_precision} {results.code()}'
  )
  suite = tuple(c.eval.suite)
  steps = evaluate.count_steps(suite, budget, network.num_classes)
  text = f'{label}: {", ".join(suite)} on {count} test images'
  attacked = None
  if c.eval.attack_precision != 'float32':
    attacked = networks.in_precision(network, c.eval.attack_precision)
  behind = 0
  with console.progress(f'{label} attacked', 0, steps * count) as update:

    def tick(more: int) -> None:
      nonlocal behind
      behind += more
      update(behind, 'steps')

    console.say(f'{text}, at most {steps:,} steps each')
    return evaluate.evaluate_suite(
      forward=networks.in_precision(network, 'float32'),
      variables=network.variables,
      split=test,
      suite=suite,
      budget=budget,
      seed=c.seed,
      batch_size=c.eval.batch_size,
      attack_forward=attacked,
      folder=folder / 'attacked',
      identity=identity,
      keep_adv=c.eval.save_images,
      show=lambda text: console.say(f'{label}: {text}'),
      tick=tick,
    )
