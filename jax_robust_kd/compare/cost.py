"""What a run costs, counted before it starts and before its teacher is there.

Only shapes are traced: no weights are drawn, nothing is compiled.
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


class Cost(NamedTuple):
  """What the parts of a run cost, in operations but for `passes`.

  Attributes:
    passes: forward passes of the student that cost as much as a training step.
    epoch: of training.
    validation: of all validation images.
    evaluation: of all test images.
  """

  passes: float = 1.0
  epoch: float = 0.0
  validation: float = 0.0
  evaluation: float = 0.0


def total_cost(c: Config, cost: Cost) -> float:
  """Returns the operations of a whole run."""
  epochs = c.optimizer.epochs
  validations = math.ceil(epochs / c.validation.every_epochs)
  training = epochs * cost.epoch + validations * cost.validation
  return training + cost.evaluation


def count_cost(
  c: Config, dataset: data.Dataset, teachers: dict[str, Config]
) -> Cost:
  """Counts what the parts of a run cost.

  Args:
    c: its config.
    dataset: its images.
    teachers: group -> config of each teacher that is still to be trained.

  Raises:
    UserError: the checkpoint of another teacher cannot be read.
  """
  method = build.make_method(c)
  steps = data.num_batches(len(dataset.train.label), c.data.batch_size)
  groups = {name: teacher_group(c, name)[0] for name in method.teachers}
  trained = {
    name: networks.load_teacher(c, name, dataset)
    for name, group in groups.items()
    if group not in teachers
  }
  built = {}

  def start():
    drawn = {
      name: build.init_network(teachers[group], dataset)
      for name, group in groups.items()
      if group in teachers
    }
    nets = build.Networks(
      build.init_network(c, dataset),
      trained | drawn,
      build.init_network(c, dataset, build.make_peer) if method.peer else None,
    )
    recipe, _ = build.make_recipe(c, nets, dataset, steps)
    built.update(recipe=recipe, forward=nets.student.forward)
    state = build.make_state(c, recipe, nets, dataset)
    return state, {name: t.variables for name, t in nets.teachers.items()}

  # Drawing weights has compiler options, which no outer program may have.
  with jax.disable_jit():
    state, variables = jax.eval_shape(start)
  passes, step = step_cost(
    partial(train_step, built['recipe']),
    state,
    variables,
    built['forward'],
    (c.data.batch_size, *dataset.train.image.shape[1:]),
  )
  forward = step / passes / c.data.batch_size
  num_tests = c.eval.num_examples or len(dataset.test.label)
  validation = len(dataset.val.label) * _attack(
    c, dataset, (c.validation.attack,)
  )
  evaluation = num_tests * _attack(c, dataset, tuple(c.eval.suite))
  return Cost(passes, steps * step, validation * forward, evaluation * forward)


def _attack(c: Config, dataset: data.Dataset, attacks: tuple[str, ...]) -> int:
  """Returns the forward passes of attacks; a gradient costs two more."""
  budget, num_classes = make_budget(c), dataset.num_classes
  return 1 + 3 * evaluate.count_steps(attacks, budget, num_classes)
