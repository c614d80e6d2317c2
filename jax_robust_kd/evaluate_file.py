"""A number for any network: a file of weights, a published one, or a run."""

from pathlib import Path
from types import SimpleNamespace

import jax

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, job, networks
from jax_robust_kd.config import Config
from jax_robust_kd.core import UserError
from jax_robust_kd.evaluation import corruptions, evaluate, published
from jax_robust_kd.evaluation.run import evaluate_network
from jax_robust_kd.interop import zoo
from jax_robust_kd.runtime import lock
from jax_robust_kd.threat import make_budget
from jax_robust_kd.training import build, checks


def run(args: SimpleNamespace, workdir: Path | None) -> None:
  """Evaluates a network that was not trained for this; writes results.json.

  Args:
    args: with the flags `commandline.MODEL` and the config.
    workdir: for all files; None: a folder beside the network.

  Raises:
    UserError: the network, the data or the threat model cannot be used.
  """
  c: Config = args.config
  with c.unlocked():
    c.data.name = args.data or c.data.name
  config_lib.validate(c)
  dataset = build.load_data(c)
  checks.check_num_examples(c, dataset)
  data.check_divides('eval', c.eval.batch_size, jax.device_count())
  checks.check_attacks(c, 'eval')
  corruptions.chosen(c.eval.corruptions)
  network = load(args, c, dataset)
  folder = workdir or beside(args.model, dataset.name, args.zoo)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'{folder} cannot be written: {error.strerror}; give --workdir FOLDER'
    ) from None
  if (folder / 'config.json').exists():
    raise UserError(
      f'--workdir {folder} is that of a run, whose results would be lost; '
      'choose another'
    )
  job.keep_compiled(folder / 'compiled')
  label = args.model if networks.is_file(args.model) else Path(args.model).name
  with lock.held(folder):
    evaluate_network(c, folder, label, dataset, network, args.model)
  job.show_results([(folder, label)])
  settings = evaluate.Settings((), make_budget(c), c.seed, c.eval.batch_size)
  published.check_clean(network, dataset, settings)


def load(
  args: SimpleNamespace, c: Config, dataset: data.Dataset
) -> networks.Network:
  """Loads the network that `--model` names.

  Raises:
    UserError: it cannot be loaded, or is for other images or classes.
  """
  if networks.is_file(args.model):
    return networks.load_file(
      args.model, dataset, args.arch, c.precision, args.zoo
    )
  if args.arch:
    raise UserError(
      f'--arch is for files of weights, and --model {args.model} is none: its '
      'config says what it is'
    )
  return networks.load_network(args.model, dataset, c.eval.checkpoint)


def beside(model: str, dataset: str, zoo_folder: str = '') -> Path:
  """Returns the folder for the files where none is given: MODEL.DATASET."""
  if model.startswith(zoo.PREFIX):
    teacher = zoo.find(model.removeprefix(zoo.PREFIX), dataset)
    model = zoo.locate(teacher, zoo_folder)
  path = Path(model).expanduser()
  plain = dataset.replace('/', '_').replace(':', '_')
  return path.with_name(f'{path.name.replace(":", ".")}.{plain}')
