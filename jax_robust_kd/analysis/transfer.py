"""Linear probe of a run's features, on its own or another data set.

The features are frozen: only the layer named 'head' is trained, on clean
images. Then the whole network is attacked on test images, end to end. The
workdir is that of a run like any other: `analyse` and further transfers read
it.
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
from jax_robust_kd.runtime.imports import short
from jax_robust_kd.runtime.malloc import keep_freed_memory
from jax_robust_kd.training import build
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


def fit(c: Config, run_dir: str, workdir: Path, mode: str) -> str:
  """Trains a linear probe on a run's features, and evaluates the network.

  What is done is not done again: the same command goes on where it stopped.

  Args:
    c: config whose data, optimizer, evaluation and seed count.
    run_dir: workdir of the run with the features.
    workdir: for all files.
    mode: as for `job.run`.

  Returns:
    'red' where a check says that the numbers cannot be believed.

  Raises:
    UserError: a mistake of the user's, before anything is compiled.
    RunError: it cannot go on.
  """
  config_lib.validate(c)
  c = make_config(c, run_dir, workdir)
  dataset = build.load_data(c)
  _check_side(c, run_dir, dataset)
  build.check(c, dataset, 'eval')  # nothing is attacked while it trains
  corruptions.chosen(c.eval.corruptions)
  network = features.load_any(run_dir, dataset, c.eval.checkpoint)
  check_workdir(workdir, c, mode)
  finished = _is_finished(workdir, network)
  if mode != 'train' and not finished:
    raise UserError(f'{workdir} has no linear probe yet; use --mode train')
  source = _describe(run_dir, c, network)
  with lock.held(workdir):
    job.keep_compiled(workdir / 'compiled')
    claim_workdir(workdir, c)
    if not finished:
      train_head(c, network, dataset, source, workdir)
    c.eval.checkpoint = 'best'  # of the workdir
    label = f'linear probe of {source["method"]}'
    evaluate_run(c, workdir, label, dataset)
    card = files.read_json(workdir / 'results.json')
    files.write_json(workdir / 'results.json', {'features': source, **card})
    job.show_results([(workdir, label)])
    return check_run(c, workdir, label, dataset) if mode == 'check' else ''


def train_head(
  c: Config,
  network: networks.Network,
  dataset: data.Dataset,
  source: dict,
  workdir: Path,
) -> None:
  """Trains a probe and saves the network with it in place of its head."""
  probe = train_probe(c, network, dataset, workdir)
  count = len(dataset.val.label)
  record = {
    **networks.describe_data(dataset),
    'chosen_by': f'clean accuracy on {count} held-out training images',
    'val_clean': probe.val_clean,
    'features': source,
  }
  head = {'kernel': probe.kernel, 'bias': probe.bias}
  features.save_with_head(workdir, network, head, probe.step, record)


def make_config(c: Config, run_dir: str, workdir: Path) -> Config:
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
  switched_on = [f'data.augment.{k}' for k in _AUGMENT if c.data.augment[k]]
  if c.data.extra.file:
    switched_on.append('data.extra.file')
  if switched_on:
    raise UserError(
      f'{switched_on[0]} is set, but features are taken once, of images '
      'without augmentation; switch it off as in configs/transfer.py'
    )
  c = job.copy(c)
  c.student, c.method, c.baseline = source.student, {'name': 'natural'}, ''
  c.data.image_size = _find_side(c, source, run_dir)
  return c


def _find_side(c: Config, source: Config, run_dir: str) -> int:
  """Returns the side of the images that the features were trained on."""
  side, source_side = c.data.image_size, source.data.image_size
  if side and source_side and side != source_side:
    raise UserError(
      f'data.image_size={side}, but {run_dir} was trained on images of '
      f'{source_side} pixels; leave it at 0'
    )
  if side or source_side:
    return side or source_side
  if c.data.name == source.data.name:
    return 0
  test = data.find_test(source.data.name, source.data.data_dir)
  return test.image.shape[1]


def _check_side(c: Config, run_dir: str, dataset: data.Dataset) -> None:
  side, dataset_side = c.data.image_size, dataset.train.image.shape[1]
  if side and side != dataset_side:
    raise UserError(
      f'the features of {run_dir} are of images of {side} pixels, those of '
      f'{dataset.name!r} have {dataset_side} and cannot be resized here; '
      f'bring them to {side} x {side}'
    )


def _describe(run_dir: str, c: Config, network: networks.Network) -> dict:
  source = read_config(run_dir)
  return {
    'run': run_dir,
    'method': short(source.method.name),
    'dataset': source.data.name,
    'checkpoint': c.eval.checkpoint,
    'checkpoint_step': network.step,
    'sha256': network.sha256,
  }


def _is_finished(workdir: Path, network: networks.Network) -> bool:
  """Returns whether the probe is trained.

  Raises:
    UserError: there is one, but on other features.
  """
  saved = checkpoint.read(workdir, 'best')
  if saved is None:
    return False
  source = saved[1].get('features', {})
  if source.get('sha256') != network.sha256:
    raise UserError(
      f'{workdir} holds a linear probe of other features, those of '
      f'{source.get("run")} at step {source.get("checkpoint_step")}; choose a '
      'new --workdir'
    )
  return True


def train_probe(
  c: Config, network: networks.Network, dataset: data.Dataset, workdir: Path
) -> linear_probe.LinearProbe:
  """Trains on the training images; those held out choose the epoch."""
  console.say(
    f'features of {len(dataset.train.label)} training and '
    f'{len(dataset.val.label)} validation images'
  )
  train, val = (
    _labelled(network, split, c.eval.batch_size)
    for split in (dataset.train, dataset.val)
  )
  metrics = workdir / 'metrics.jsonl'
  files.truncate(metrics, 0)
  per_epoch = data.num_batches(len(train.label), c.data.batch_size)
  tx, _ = build.make_optimizer(c, per_epoch)
  schedule = linear_probe.Schedule(
    c.data.batch_size, c.optimizer.epochs, c.seed
  )
  with console.progress('linear probe', 0, schedule.epochs) as update:

    def log(line: dict) -> None:
      files.append(metrics, line)
      accuracy = 100 * line['val_clean']
      update(line['epoch'], f'loss {line["loss"]:.3f}  val {accuracy:.1f}')

    return linear_probe.fit(train, val, dataset.num_classes, tx, schedule, log)


def _labelled(
  network: networks.Network, split: data.Split, batch_size: int
) -> linear_probe.Labelled:
  rows = np.arange(len(split.label))
  local_rows = rows[processes.process_slice()]
  local = features.extract(
    network,
    lambda part: evaluate.pixels(split, local_rows[part]),
    len(local_rows),
    batch_size,
  )
  pooled = processes.gather_slices(local['pooled'], len(rows))
  return linear_probe.Labelled(pooled, np.asarray(split.label[rows]))
