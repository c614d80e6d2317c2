"""How much work a run is, counted before it starts and before its teacher is.

Only shapes are handled: no weights are drawn, nothing is compiled.
"""

from functools import partial
import math
from typing import NamedTuple

import jax

from jax_robust_kd import data, networks
from jax_robust_kd.config import Config, teacher_group
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.planning.flops import step_cost
from jax_robust_kd.threat import make_budget
from jax_robust_kd.training import build
from jax_robust_kd.training.step import train_step


class Load(NamedTuple):
  """What the parts of a run cost.

  Attributes:
    passes: forward passes of the student that a training step costs.
    step: operations of a training step.
    forward: operations of the student's forward pass of one image.
    steps_per_epoch: training steps.
    validated: passes of one validation, forward and backward, over all images.
    evaluated: passes of the evaluation, likewise.
  """

  passes: float
  step: float
  forward: float
  steps_per_epoch: int
  validated: float
  evaluated: float


def leave_devices_alone() -> None:
  """Keeps this process on the CPU: the accelerators are for the runs."""
  jax.config.update('jax_platforms', 'cpu')


def count(c: Config, dataset: data.Dataset, planned: dict[str, Config]) -> Load:
  """Counts what the parts of a run cost.

  Args:
    c: its config.
    dataset: its images.
    planned: group -> config of each teacher that is still to be trained.

  Raises:
    UserError: a teacher that was given cannot be read.
  """
  method = build.make_method(c)
  per_epoch = data.num_batches(len(dataset.train.label), c.data.batch_size)
  given, built = {}, {}
  for name in method.teachers:
    if teacher_group(c, name)[0] not in planned:
      given[name] = networks.load_teacher(c, name, dataset)

  def start():
    nets = build.Networks(
      build.init_network(c, dataset),
      given
      | {
        name: build.init_network(planned[teacher_group(c, name)[0]], dataset)
        for name in method.teachers
        if name not in given
      },
      build.init_network(c, dataset, build.make_peer) if method.peer else None,
    )
    recipe, _ = build.make_recipe(c, nets, dataset, per_epoch)
    built.update(recipe=recipe, forward=nets.student.forward)
    state = build.make_state(c, recipe, nets, dataset)
    return state, {name: t.variables for name, t in nets.teachers.items()}

  # Drawing weights has compiler options, which no outer program may have.
  with jax.disable_jit():
    state, variables = jax.eval_shape(start)
  passes, flops = step_cost(
    partial(train_step, built['recipe']),
    state,
    variables,
    built['forward'],
    (c.data.batch_size, *dataset.train.image.shape[1:]),
  )
  tests = c.eval.num_examples or len(dataset.test.label)
  return Load(
    passes=passes,
    step=flops,
    forward=flops / passes / c.data.batch_size,
    steps_per_epoch=per_epoch,
    validated=len(dataset.val.label) * _attack(c, dataset, (c.eval.attack,)),
    evaluated=tests * _attack(c, dataset, tuple(c.eval.suite)),
  )


def _attack(c: Config, dataset: data.Dataset, suite: tuple[str, ...]) -> float:
  """Returns the passes that attacking an image costs; backward counts two."""
  steps = evaluate.count_steps(suite, make_budget(c), dataset.num_classes)
  return 1 + 3 * steps


def operations(c: Config, load: Load) -> float:
  """Returns the operations of a whole run: training, validation, evaluation."""
  epochs = c.optimizer.epochs
  validations = math.ceil(epochs / c.eval.every_epochs)
  passes = validations * load.validated + load.evaluated
  return epochs * load.steps_per_epoch * load.step + passes * load.forward
