"""All commands: `python -m jax_robust_kd COMMAND`, or `jax-robust-kd COMMAND`.

Exit codes are those of `main`.
"""

from functools import partial
import sys

from jax_robust_kd import __version__, commandline
from jax_robust_kd.commandline import (
  MODE,
  MODEL,
  PROCESSES,
  WORKDIR,
  Args,
  Command,
  Flag,
)

_PROGRAM = 'jax_robust_kd'
_USAGE = """usage: jax-robust-kd COMMAND ...

{commands}

`jax-robust-kd COMMAND --help` says more of one; --version prints the version.
"""


def _run(mode: str, args: Args) -> int:
  from jax_robust_kd import main

  args.mode = mode
  return main.run(args)


def _compare(args: Args) -> int:
  from jax_robust_kd.compare import command

  return command.run(args)


def _transfer(args: Args) -> int:
  from jax_robust_kd.analysis import transfer

  return transfer.run(args)


def _analyse(args: Args) -> int:
  from jax_robust_kd.analysis import analyse

  return analyse.run(args)


def _prepare(args: Args) -> int:
  from jax_robust_kd.data import prepare

  return prepare.run(args)


def _preview(args: Args) -> int:
  from jax_robust_kd.data import preview

  return preview.run(args)


def _report(args: Args) -> int:
  from jax_robust_kd.report import command

  return command.report(args)


def _table(args: Args) -> int:
  from jax_robust_kd.report import command

  return command.table(args)


def _export(args: Args) -> int:
  from jax_robust_kd import export

  return export.run(args)


def _config(args: Args) -> int:
  from jax_robust_kd import settings

  return settings.run(args)


def _predict(args: Args) -> int:
  from jax_robust_kd import predict

  return predict.run(args)


_DATA = (
  Flag('name', 'NAME', None, 'as config.data.name'),
  Flag('data_dir', 'FOLDER', '', 'as config.data.data_dir'),
)

COMMANDS = {
  'train': Command(
    'Trains a config and all that it needs, and evaluates it.',
    'jax-robust-kd train --config rslad:digits --workdir runs/rslad',
    partial(_run, 'train'),
    (WORKDIR, *PROCESSES),
    config='given',
  ),
  'eval': Command(
    'Evaluates a finished run, or any network, on test images.',
    "jax-robust-kd eval --workdir runs/rslad --config.eval.suite=('pgd-50',)",
    partial(_run, 'eval'),
    (WORKDIR, *MODEL, *PROCESSES),
    config='or of the run',
  ),
  'check': Command(
    'Evaluates a finished run and says whether to believe its numbers.',
    'jax-robust-kd check --workdir runs/rslad',
    partial(_run, 'check'),
    (WORKDIR, *PROCESSES),
    config='or of the run',
  ),
  'compare': Command(
    'Runs, resumes and tabulates any set of methods at one budget. Teachers '
    'that configs ask for are trained once, in the workdir, and shared.',
    'jax-robust-kd compare --configs rslad:digits,adaad:digits --seeds 0,1 '
    '--workdir runs/compare',
    _compare,
    (
      Flag('configs', 'CONFIG,CONFIG', None, 'or one Python file that defines '
           'get_runs(), which returns a list of (label, config)'),
      WORKDIR,
      Flag('seeds', '0,1,2', '0', 'every config runs with each'),
      Flag('budget', '', 'epochs', 'all train for the first config\'s epochs; '
           'or for as many network passes; or for their own epochs',
           ('epochs', 'passes', 'own')),
      Flag('jobs', 'N', 1, 'runs at once'),
    ),
    config='shared',
  ),
  'transfer': Command(
    "Trains a linear layer on a run's frozen features. Then the whole network "
    'is evaluated. Of the config only data, optimizer, eval and seed count.',
    'jax-robust-kd transfer --features runs/gacd --config transfer:stl10 '
    '--workdir runs/gacd_stl10',
    _transfer,
    (
      Flag('features', 'RUN', None, 'workdir of the run whose features are '
           'frozen; config.eval.checkpoint says which: best or last'),
      WORKDIR,
      MODE,
      *PROCESSES,
    ),
    config='given',
  ),
  'analyse': Command(
    'Compares how student and teacher see clean and attacked images.',
    'jax-robust-kd analyse --workdir runs/rslad',
    _analyse,
    (
      Flag('workdir', 'RUN', None, 'a run; its network is the student'),
      Flag('teacher', 'RUN2', '', "another finished run; or the run's own "
           'teacher'),
      Flag('num_examples', 'N', 0, 'first test images; or 1000, or all if '
           'fewer'),
    ),
  ),
  'prepare': Command(
    'Prepares a data set once, and checks every image of it. Run again, it '
    'checks that nothing has changed since.',
    'jax-robust-kd prepare --name cifar10 --data_dir ~/data',
    _prepare,
    (
      *_DATA,
      Flag('archive_dir', 'FOLDER', '', 'archives that are there already'),
      Flag('image_size', 'PIXELS', 0, 'as config.data.image_size'),
    ),
  ),
  'preview': Command(
    'Draws what every augmentation does to images of a data set.',
    'jax-robust-kd preview --name digits --out sheet.png',
    _preview,
    (
      *_DATA,
      Flag('image_size', 'PIXELS', 0, 'as config.data.image_size'),
      Flag('out', 'FILE', 'augment.png', 'the picture'),
      Flag('images', 'N', 12, 'columns, even'),
      Flag('side', 'PIXELS', 64, 'side of an image in the picture'),
      Flag('seed', 'N', 0, 'of the draws'),
    ),
  ),
  'report': Command(
    'Writes a page with plots and a model card. One run is shown in full; '
    'several, separated by commas, are compared.',
    'jax-robust-kd report --workdir runs/quickstart',
    _report,
    (Flag('workdir', 'RUN,RUN', None, 'evaluated runs'),),
  ),
  'table': Command(
    'Writes results.csv: one row for each run below a folder, not rounded.',
    'jax-robust-kd table --folder runs',
    _table,
    (
      Flag('folder', 'FOLDER', None, 'holds the workdirs'),
      Flag('out', 'FILE', '', 'or results.csv in the folder'),
    ),
  ),
  'export': Command(
    'Writes a student for phones and other programs. Each artefact is proved '
    'by its own runtime on test images: parity.json. Exit code 3 where one '
    'loses more than half a point of accuracy.',
    'jax-robust-kd export --workdir runs/quickstart --to litert,stablehlo',
    _export,
    (
      Flag('workdir', 'RUN', None, 'an evaluated run'),
      Flag('to', 'TARGET,TARGET', 'litert', 'litert, onnx, torch, stablehlo'),
      Flag('out', 'FOLDER', '', 'or export in the workdir'),
      Flag('num_images', 'N', 500, 'test images of the proof'),
      Flag('square', 'N', 0, 'images that Square attacks on the artefact '
           'itself; 200 is usual'),
    ),
  ),
  'config': Command(
    'Prints every setting of a config, and where its value is from.',
    'jax-robust-kd config --config rslad:digits --config.seed=1',
    _config,
    config='given',
  ),
  'predict': Command(
    'Prints the most probable classes of image files.',
    'jax-robust-kd predict --model runs/rslad photo.jpg',
    _predict,
    (
      Flag('model', 'RUN', None, 'workdir of a finished run'),
      Flag('checkpoint', '', 'best', 'which of its checkpoints',
           ('best', 'last')),
      Flag('top', 'N', 3, 'classes of each image'),
    ),
    files='IMAGE...',
  ),
}  # fmt: skip


def main(argv: list[str]) -> int:
  """Runs a command; returns its exit code."""
  name, *words = argv[1:] or ['--help']
  if name == '--version':
    print(f'jax-robust-kd {__version__}')
    return 0
  if name in ('-h', '--help'):
    print(_USAGE.format(commands=_list()), end='')
    return 0
  if name in COMMANDS and {'-h', '--help'} & set(words):
    print(commandline.usage(COMMANDS[name], f'jax-robust-kd {name}'))
    return 0
  from jax_robust_kd.runtime import console

  return console.guard(lambda: _start(name, words))


def _start(name: str, words: list[str]) -> int:
  from jax_robust_kd.core import UserError

  if name not in COMMANDS:
    raise UserError(
      f'there is no command {name!r}; use one of: {", ".join(COMMANDS)}'
    )
  command = COMMANDS[name]
  return command.run(commandline.parse(command, f'{_PROGRAM} {name}', words))


def _list() -> str:
  firsts = {n: c.about.partition('. ')[0] for n, c in COMMANDS.items()}
  return '\n'.join(
    f'  {n:9} {about.rstrip(".")}' for n, about in firsts.items()
  )


def start() -> None:
  """Is the program `jax-robust-kd`."""
  if {'-h', '--help', '--version'} & set(sys.argv[1:3]):
    sys.exit(main(sys.argv))
  from jax_robust_kd.main import run_command

  run_command(main)


if __name__ == '__main__':
  start()
