"""How alike student and teacher see clean and attacked images, as a command.

For every stage: linear CKA between the two networks, on clean images and on
images attacked by PGD-10 on the student in the run's threat model; and, of each
network alone, the mean cosine between the features of an image before and after
that attack. Features of a stage are averaged over pixels, see
`features.extract`. Writes analysis.json and analysis.png.
"""

from pathlib import Path

import jax
import numpy as np

from jax_robust_kd import __version__, data, networks
from jax_robust_kd.analysis import cka, features
from jax_robust_kd.commandline import Args
from jax_robust_kd.config import Config
from jax_robust_kd.core import ROBUST, RunError, UserError
from jax_robust_kd.evaluation import evaluate, results
from jax_robust_kd.runtime import console
from jax_robust_kd.runtime.files import write_json
from jax_robust_kd.runtime.imports import short
from jax_robust_kd.runtime.malloc import keep_freed_memory
from jax_robust_kd.threat import make_budget, threat_model
from jax_robust_kd.training import build
from jax_robust_kd.workdir import find_workdir, read_config

ATTACK = 'pgd-10'
_DEFAULT = 1000  # images


def run(args: Args) -> int:
  """Runs the command; returns its exit code."""
  keep_freed_memory()
  workdir = str(find_workdir(args.workdir))
  analyse(workdir, args.teacher, args.num_examples)
  return 0


def analyse(workdir: str, teacher: str, num_examples: int) -> None:
  """Analyses a run; writes analysis.json and analysis.png into its workdir.

  Args:
    workdir: of the run; its network is the student.
    teacher: workdir of another run, '' for the run's own teacher.
    num_examples: test images, 0 for the default.

  Raises:
    UserError: no such run or teacher, or more images than there are.
    RunError: the files cannot be written.
  """
  c = read_config(workdir)
  if teacher:
    c.teacher.update(checkpoint=teacher, arch='', function='', sha256='')
  if not (c.teacher.checkpoint or c.teacher.function):
    raise UserError(
      f'the run in {workdir} has no teacher; give --teacher RUN2, the workdir '
      'of a finished run'
    )
  dataset = build.load_data(c)
  available = len(dataset.test.label)
  count = num_examples or min(_DEFAULT, available)
  if not 2 <= count <= available:
    raise UserError(
      f'--num_examples={count} must be from 2 to the {available} test images'
    )
  student = networks.load_network(workdir, dataset, c.eval.checkpoint)
  other = networks.load_teacher(c, ROBUST, dataset)
  test = data.Split(*(part[:count] for part in dataset.test))
  measured = measure(c, student, other, test)
  card = make_card(c, workdir, student, other, test)
  write_json(Path(workdir) / 'analysis.json', {**card, **measured})
  show(card, measured)
  draw(Path(workdir) / 'analysis.png', card, measured)


def measure(
  c: Config,
  student: networks.Network,
  teacher: networks.Network,
  test: data.Split,
) -> dict:
  """Returns the similarities.

  Returns:
    'cka': 'clean' and 'adversarial' -> stage of the student -> stage of the
    teacher -> number; 'cosine': 'student' and 'teacher' -> stage -> number.
  """
  size = c.eval.batch_size
  attack = evaluate.make_split_attack(
    networks.in_precision(student, 'float32'),
    ATTACK,
    make_budget(c),
    c.seed,
    size,
  )
  console.say(f'attacking {len(test.label)} images by {ATTACK}')
  adv = attack(student.variables, test).adv
  images = {
    'clean': lambda rows: evaluate.pixels(test, rows),
    'adversarial': lambda rows: adv[rows],
  }
  stages = {
    name: {
      kind: features.extract(network, pixels, len(test.label), size)
      for kind, pixels in images.items()
    }
    for name, network in (('student', student), ('teacher', teacher))
  }
  return {
    'cka': {
      kind: _all_pairs(stages['student'][kind], stages['teacher'][kind])
      for kind in images
    },
    'cosine': {
      name: {
        stage: cka.mean_cosine(clean, of_network['adversarial'][stage])
        for stage, clean in of_network['clean'].items()
      }
      for name, of_network in stages.items()
    },
  }


def _all_pairs(student: dict, teacher: dict) -> dict[str, dict[str, float]]:
  """Returns the linear CKA of each stage of one with each of the other."""
  return {
    stage: {other: cka.linear_cka(x, y) for other, y in teacher.items()}
    for stage, x in student.items()
  }


def make_card(
  c: Config,
  workdir: str,
  student: networks.Network,
  teacher: networks.Network,
  test: data.Split,
) -> dict:
  """Returns the networks, images and attack that the numbers are of."""
  norm, epsilon, step_size = threat_model(c)
  return {
    'student': workdir,
    'student_architecture': student.name,
    'student_sha256': student.sha256,
    'teacher': c.teacher.checkpoint,
    'teacher_architecture': teacher.name,
    'teacher_sha256': teacher.sha256,
    'method': short(c.method.name),
    'dataset': c.data.name,
    'split': c.data.test_split or 'test',
    'num_examples': len(test.label),
    'attack': f'{ATTACK} on the student',
    'norm': norm,
    'eps': epsilon,
    'step_size': step_size,
    'features': 'averaged over pixels',
    'seed': c.seed,
    'commit': results.commit(),
    'version': __version__,
    'jax': jax.__version__,
  }


def show(card: dict, measured: dict) -> None:
  """Prints CKA of the stages that both have, and the cosines of all."""
  cosine = measured['cosine']
  rows = [
    [
      stage,
      *(_text(measured['cka'][kind], stage, stage) for kind in measured['cka']),
      *(_text(cosine, name, stage) for name in cosine),
    ]
    for stage in all_stages(cosine)
  ]
  console.table(
    f'{card["dataset"]}, {card["num_examples"]} test images, {card["attack"]}, '
    f'{card["norm"]} {card["eps"]}',
    ['', 'CKA clean', 'CKA adversarial', 'cosine student', 'cosine teacher'],
    rows,
  )


def all_stages(cosine: dict) -> list[str]:
  """Returns the stages that any of the networks has, from image to logits."""
  names = {stage for of_network in cosine.values() for stage in of_network}
  return sorted(names, key=features.depth)


def _text(table: dict, row: str, column: str) -> str:
  if row in table and column in table[row]:
    return f'{table[row][column]:.3f}'
  return ''


def draw(path: Path, card: dict, measured: dict) -> None:
  """Draws CKA of all pairs of stages, and the cosines.

  Raises:
    RunError: the picture cannot be written.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    console.say(f'no {path.name}: it needs matplotlib; pip install matplotlib')
    return
  figure = Figure(figsize=(12, 4), layout='constrained')
  axes = figure.subplots(1, 3)
  for axis, (kind, table) in zip(axes, measured['cka'].items(), strict=False):
    _draw_pairs(axis, f'linear CKA, {kind} images', table)
  _draw_cosines(axes[2], measured['cosine'])
  figure.suptitle(
    f'{card["method"]}, {card["dataset"]}, {card["num_examples"]} test images, '
    f'{card["attack"]}, {card["norm"]} {card["eps"]}'
  )
  try:
    figure.savefig(path, dpi=150)
  except OSError as error:
    raise RunError(f'{path} cannot be written: {error.strerror}') from error
  console.say(f'{path}')


def _draw_pairs(axis, title: str, table: dict) -> None:
  values = np.array([list(row.values()) for row in table.values()])
  axis.imshow(values, vmin=0, vmax=1, origin='lower', cmap='viridis')
  for (row, column), value in np.ndenumerate(values):
    colour = 'white' if value < 0.6 else 'black'
    axis.text(
      column, row, f'{value:.2f}', ha='center', va='center', color=colour
    )
  teacher_stages = list(next(iter(table.values())))
  axis.set_xticks(range(len(teacher_stages)), teacher_stages)
  axis.set_yticks(range(len(table)), list(table))
  axis.set(title=title, xlabel='teacher', ylabel='student')


def _draw_cosines(axis, cosine: dict) -> None:
  names = all_stages(cosine)
  for network, of_network in cosine.items():
    indices = [names.index(stage) for stage in of_network]
    axis.plot(indices, list(of_network.values()), marker='o', label=network)
  axis.set_xticks(range(len(names)), names)
  axis.set(title='cosine of clean and adversarial', ylabel='mean over images')
  axis.grid(alpha=0.3)
  axis.legend()
