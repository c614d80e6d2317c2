"""The command `export`: a student in the formats of other programs, proved."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_robust_kd import attacks, classifier, data
from jax_robust_kd.commandline import Args
from jax_robust_kd.core import UserError
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.evaluation.run import test_split
from jax_robust_kd.interop import litert, onnx, parity, stablehlo, torch_export
from jax_robust_kd.interop.predict_templates import predict_source
from jax_robust_kd.report.command import evaluated_config
from jax_robust_kd.report.evidence import kept_images
from jax_robust_kd.report.reading import RunFiles, read_run
from jax_robust_kd.runtime import console
from jax_robust_kd.training.build import load_data
from jax_robust_kd.workdir import find_workdir

Run = Callable[[np.ndarray], np.ndarray]
WARNING = 3  # exit code: an artefact loses more than half a point


class Student(NamedTuple):
  """What is exported, and what it is proved on.

  Attributes:
    model: from `jax_robust_kd.load`.
    image: [N, H, W, C] float32 test images.
    label: [N].
    attacked: attack -> (rows, images) that the evaluation kept.
    calibration: [n, H, W, C] float32 training images, for int8.
  """

  model: Any
  image: np.ndarray
  label: np.ndarray
  attacked: dict[str, tuple[np.ndarray, np.ndarray]]
  calibration: np.ndarray


def run(args: Args) -> int:
  """Runs the command; returns 0, or 3 where an artefact loses accuracy."""
  targets = args.to.split(',')
  for target in targets:
    if target not in TARGETS:
      raise UserError(
        f'--to {target!r} is unknown; use one or more of: {",".join(TARGETS)}'
      )
  workdir = find_workdir(args.workdir)
  student = load_student(workdir, args.num_images)
  out = Path(args.out or workdir / 'export')
  proofs = {}
  for target in targets:
    folder = out / target
    folder.mkdir(parents=True, exist_ok=True)
    for name, artefact in TARGETS[target](student, folder).items():
      # StableHLO runs in JAX, which cannot be called from an attack in JAX.
      square = 0 if target == 'stablehlo' else args.square
      proofs[name] = prove(student, artefact, square)
      console.say(f'{name}: {_sentence(proofs[name])}')
    _describe(student, target, folder)
  (out / 'parity.json').write_text(json.dumps(proofs, indent=2) + '\n')
  console.say(f'written: {out}/, with parity.json')
  lossy = [n for n, p in proofs.items() if p['loses'] > parity.LARGEST_LOSS]
  for name in lossy:
    console.say(
      f'warning: {name} loses {proofs[name]["loses"]:.1f} points of accuracy '
      'against the network; use the float export, or calibrate on more images'
    )
  return WARNING if lossy else 0


def load_student(workdir: Path, num_images: int) -> Student:
  """Loads a run, the images it was evaluated on, and those that attacks left.

  Raises:
    UserError: the run was not evaluated, or its data cannot be read.
  """
  files: RunFiles = read_run(workdir)
  c = evaluated_config(files)
  dataset = load_data(c)
  test = test_split(c, dataset)
  count = min(num_images, len(test.label))
  rows = np.arange(count)
  attacked = {}
  for name in files.attacks:
    kept = kept_images(files, name)
    if kept is not None:
      first = kept[0] < count
      attacked[name] = (kept[0][first], kept[1][first])
  train = data.Split(dataset.train.image[:100], dataset.train.label[:100])
  return Student(
    classifier.load(workdir, c.eval.checkpoint),
    evaluate.pixels(test, rows),
    np.asarray(test.label[rows]),
    attacked,
    evaluate.pixels(train, np.arange(len(train.label))),
  )


def _logits_fn(student: Student) -> Callable:
  apply = student.model.as_partial()
  return lambda image: apply(image)


def _shape(student: Student) -> tuple[int, ...]:
  return student.image.shape[1:]


def _litert(student: Student, folder: Path) -> dict[str, Run]:
  content = litert.to_litert(_logits_fn(student), _shape(student))
  files = {
    'model': content,
    'model_int8_weights': litert.quantize(content, None, full=False),
    'model_int8': litert.quantize(content, student.calibration, full=True),
  }
  for name, value in files.items():
    (folder / f'{name}.tflite').write_bytes(value)
  names = ('litert', 'litert int8 weights', 'litert int8')
  return {
    name: litert.make_runner(value)
    for name, value in zip(names, files.values(), strict=True)
  }


def _stablehlo(student: Student, folder: Path) -> dict[str, Run]:
  content = stablehlo.to_stablehlo(_logits_fn(student), _shape(student))
  (folder / 'model.stablehlo').write_bytes(content)
  return {'stablehlo': stablehlo.make_runner(content)}


def _torch(student: Student, folder: Path) -> dict[str, Run]:
  network = student.model.network
  names = student.model.class_names
  torch_export.write_torch(folder, network.variables, network.module, names)
  return {'torch': torch_export.make_runner(folder)}


def _onnx(student: Student, folder: Path) -> dict[str, Run]:
  network, path = student.model.network, folder / 'model.onnx'
  onnx.to_onnx(path, network.variables, network.module, _shape(student))
  return {'onnx': onnx.make_runner(path)}


TARGETS = {
  'litert': _litert,
  'onnx': _onnx,
  'torch': _torch,
  'stablehlo': _stablehlo,
}


def prove(student: Student, artefact: Run, square: int) -> dict[str, Any]:
  """Returns what an artefact is worth, from its own runtime.

  Args:
    student: the network and its images.
    artefact: images -> logits.
    square: images that Square attacks on the artefact itself; 0: none.
  """
  proof = parity.compare(
    artefact, student.model, student.image, student.label, student.attacked
  )
  if square:
    count = min(square, len(student.label))
    found = attacks.autoattack(
      parity.as_callback(artefact, len(student.model.class_names)),
      student.image[:count], student.label[:count],
      epsilon=student.model.config.eval.epsilon
      or student.model.config.train_attack.epsilon,
      suite=('square-500',), show=lambda text: None,
    )  # fmt: skip
    correct = found.correct['square-500']
    proof['square-500'] = {
      'num_images': count, 'accuracy': 100 * float(correct.mean()),
    }  # fmt: skip
  return proof


def _sentence(proof: dict[str, Any]) -> str:
  stored = ', '.join(
    f'{name} {values["upper_bound"]:.1f}'
    for name, values in proof['stored_attacks'].items()
  )
  return (
    f'relative error {proof["relative_error"]:.1e}, {proof["flips"]} flips of '
    f'{proof["num_images"]}, clean {proof["clean"]:.1f} (network '
    f'{proof["clean_reference"]:.1f}), stored attacks {stored or "none"}, '
    f'{proof["latency_ms"]:.2f} ms an image'
  )


def _describe(student: Student, target: str, folder: Path) -> None:
  """Writes labels, preprocessing and predict.py beside an artefact."""
  names, shape = tuple(student.model.class_names), _shape(student)
  (folder / 'labels.txt').write_text(
    ''.join(f'{console.printable(name)}\n' for name in names), encoding='utf-8'
  )
  preprocessing = {
    'in words': 'Turn the photo as its EXIF says, convert to grey or RGB, '
    'resize to height x width, divide by 255. Normalization is inside.',
    'height': shape[0],
    'width': shape[1],
    'channels': shape[2],
    'layout': 'NCHW' if target in ('onnx', 'torch') else 'NHWC',
    'range': [0, 1],
  }
  text = json.dumps(preprocessing, indent=2)
  (folder / 'preprocessing.json').write_text(text + '\n')
  source = predict_source(target, names, shape)
  (folder / 'predict.py').write_text(source, encoding='utf-8')
