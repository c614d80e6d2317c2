"""What the features of a run are worth on another data set, as a command.

Everything of the network is kept as it is but the layer named 'head', which is
trained anew on the features of the images as they are, without attack. Then the
whole network is attacked on test images, end to end. With the data set that the
features were trained on this is their linear probe. What is left is a run like
any other: `analyse` and further transfers read it.
"""

from pathlib import Path

import numpy as np

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, job, networks
from jax_robust_kd import main as main_lib
from jax_robust_kd.analysis import features, linear_probe
from jax_robust_kd.commandline import Args
from jax_robust_kd.config import Config
from jax_robust_kd.core import UserError
from jax_robust_kd.evaluation import corruptions, evaluate
from jax_robust_kd.evaluation.run import check_run, evaluate_run
from jax_robust_kd.runtime import checkpoint, console, files, lock, processes
from jax_robust_kd.runtime.malloc import keep_freed_memory
from jax_robust_kd.training import build, optim
from jax_robust_kd.workdir import (
  check_workdir,
  claim_workdir,
  find_workdir,
  read_config,
)

# Switches of data.augment that change images.
_AUGMENT = (
  'crop_pad', 'crop_shift', 'resized_crop', 'flip', 'policy', 'cutout',
  'erase_prob', 'mixup_alpha', 'cutmix_alpha',
)  # fmt: skip


def run(args: Args) -> int:
  """Runs the command; returns its exit code, as `main.run` does."""
  workdir = find_workdir(args.workdir)
  keep_freed_memory()
  code = main_lib.join_others(args)
  if code is not None:
    return code
  level = fit(args.config, args.features, workdir, args.mode)
  return 3 if level == 'red' else 0


def fit(given: Config, run_dir: str, workdir: Path, mode: str) -> str:
  """Trains a linear layer on a run's features, and evaluates the whole.

  What is done is not done again: the same command goes on where it stopped.

  Args:
    given: data set, optimizer and evaluation.
    run_dir: workdir of the run with the features.
    workdir: for all files.
    mode: as for `job.run`.

  Returns:
    'red' where a check says that the numbers cannot be believed.

  Raises:
    UserError: a mistake of the user's, before anything is compiled.
    RunError: it cannot go on.
  """
  config_lib.validate(given)
  c = make_config(given, run_dir, workdir)
  dataset = build.load_data(c)
  _check_side(c, run_dir, dataset)
  build.check(c, dataset, 'eval')  # nothing is attacked while it trains
  corruptions.chosen(c.eval.corruptions)
  network = features.load_any(run_dir, dataset, c.eval.checkpoint)
  check_workdir(workdir, c, mode)
  finished = _is_finished(workdir, network)
  if mode != 'train' and not finished:
    raise UserError(f'{workdir} has no linear layer yet; use --mode train')
  source = _describe(run_dir, c, network)
  with lock.held(workdir):
    return _run(c, network, dataset, source, workdir, mode, finished)


def _run(
  c: Config,
  network: networks.Network,
  dataset: data.Dataset,
  source: dict,
  workdir: Path,
  mode: str,
  finished: bool,
) -> str:
  job.keep_compiled(workdir / 'compiled')
  claim_workdir(workdir, c)
  if not finished:
    layer = train_layer(c, network, dataset, workdir)
    count = len(dataset.val.label)
    record = {
      'num_classes': dataset.num_classes,
      'chosen_by': f'clean accuracy on {count} held-out training images',
      'val_clean': layer.val_clean,
      'features': source,
    }
    head = {'kernel': layer.kernel, 'bias': layer.bias}
    features.save_with_head(workdir, network, head, layer.step, record)
  c.eval.checkpoint = 'best'  # of the workdir
  label = f'linear layer on {source["method"]}'
  evaluate_run(c, workdir, label, dataset)
  card = files.read_json(workdir / 'results.json')
  files.write_json(workdir / 'results.json', {'features': source, **card})
  job.show_results([(workdir, label)])
  return check_run(c, workdir, label, dataset) if mode == 'check' else ''


def make_config(given: Config, run_dir: str, workdir: Path) -> Config:
  """Returns the config of the whole network, with images of the right size.

  Raises:
    UserError: there is no such run, it is the workdir, augmentation is asked,
      or another size than the run's.
  """
  source = read_config(run_dir)
  if workdir.resolve() == Path(run_dir).resolve():
    raise UserError(
      f'--workdir {workdir} is that of the features; choose a new one'
    )
  asked = [key for key in _AUGMENT if given.data.augment[key]]
  if asked or given.data.extra.file:
    key = f'data.augment.{asked[0]}' if asked else 'data.extra.file'
    raise UserError(
      f'{key} is set, but features are taken once, of the images of the set as '
      'they are; switch it off as in configs/transfer.py'
    )
  c = job.copy(given)
  c.student, c.method, c.baseline = source.student, {'name': 'natural'}, ''
  c.data.image_size = _find_side(given, source, run_dir)
  return c


def _find_side(given: Config, source: Config, run_dir: str) -> int:
  """Returns the side of the images that the features were trained on."""
  asked, known = given.data.image_size, source.data.image_size
  if asked and known and asked != known:
    raise UserError(
      f'data.image_size={asked}, but {run_dir} was trained on images of '
      f'{known} pixels; leave it at 0'
    )
  if asked or known:
    return asked or known
  if given.data.name == source.data.name:
    return 0
  test = data.find_test(source.data.name, source.data.data_dir)
  return test.image.shape[1]


def _check_side(c: Config, run_dir: str, dataset: data.Dataset) -> None:
  side, found = c.data.image_size, dataset.train.image.shape[1]
  if side and side != found:
    raise UserError(
      f'the features of {run_dir} are of images of {side} pixels, those of '
      f'{dataset.name!r} have {found} and cannot be resized here; bring them '
      f'to {side} x {side}'
    )


def _describe(run_dir: str, c: Config, network: networks.Network) -> dict:
  source = read_config(run_dir)
  return {
    'run': run_dir,
    'method': source.method.name,
    'dataset': source.data.name,
    'checkpoint': c.eval.checkpoint,
    'checkpoint_step': network.step,
    'sha256': network.sha256,
  }


def _is_finished(workdir: Path, network: networks.Network) -> bool:
  """Returns whether the layer is trained.

  Raises:
    UserError: there is one, but on other features.
  """
  found = checkpoint.read(workdir, 'best')
  if found is None:
    return False
  source = found[1].get('features', {})
  if source.get('sha256') != network.sha256:
    raise UserError(
      f'{workdir} holds a layer on other features, those of '
      f'{source.get("run")} at step {source.get("checkpoint_step")}; choose a '
      'new --workdir'
    )
  return True


def train_layer(
  c: Config, network: networks.Network, dataset: data.Dataset, workdir: Path
) -> linear_probe.Layer:
  """Trains on the training images; those held out choose the epoch."""
  console.say(
    f'features of {len(dataset.train.label)} training and '
    f'{len(dataset.val.label)} validation images'
  )
  train, val = (
    _labelled(network, split, c.eval.batch_size)
    for split in (dataset.train, dataset.val)
  )
  log = workdir / 'metrics.jsonl'
  files.truncate(log, 0)
  per_epoch = data.num_batches(len(train.label), c.data.batch_size)
  tx, _ = optim.from_settings(c.optimizer, per_epoch)
  with console.progress('linear layer', 0, c.optimizer.epochs) as update:

    def show(line: dict) -> None:
      files.append(log, line)
      accuracy = 100 * line['val_clean']
      update(line['epoch'], f'loss {line["loss"]:.3f}  val {accuracy:.1f}')

    return linear_probe.fit(
      train,
      val,
      dataset.num_classes,
      tx,
      batch_size=c.data.batch_size,
      epochs=c.optimizer.epochs,
      seed=c.seed,
      show=show,
    )


def _labelled(
  network: networks.Network, split: data.Split, batch_size: int
) -> linear_probe.Labelled:
  rows = np.arange(len(split.label))
  own = rows[processes.process_slice()]
  found = features.extract(
    network,
    lambda part: evaluate.pixels(split, own[part]),
    len(own),
    batch_size,
  )
  pooled = processes.gather_slices(found['pooled'], len(rows))
  return linear_probe.Labelled(pooled, np.asarray(split.label[rows]))
