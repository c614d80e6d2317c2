"""When Auto-PGD checks its progress: tables, known before it starts.

Shares are those of the reference program, github.com/fra31/auto-attack.
"""

import math
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
  """What the schedule says about one evaluation of the network.

  Attributes:
    widening: radius of the ball in units of epsilon.
    begins: whether a phase starts here: the point is its start, not a step.
    inertia: share of this step; the rest is the step before.
    window: steps since the last checkpoint if here is one, else 0.
  """

  widening: Any
  begins: Any
  inertia: Any
  window: Any


def windows(norm: str, num_steps: int) -> np.ndarray:
  """Returns, for each step, the steps since the last checkpoint, or 0 if none.

  The first checkpoint comes after 22 % of the steps, each later one 3 % sooner
  than the one before it, down to 6 %; in l_1 there is one every 4 %.
  """

  def steps(share: float) -> int:
    return max(int(share * num_steps), 1)

  window, shrink, least = steps(0.22), steps(0.03), steps(0.06)
  if norm == 'l1':
    window, shrink, least = steps(0.04), 0, 1
  table = np.zeros(num_steps, np.int32)
  done = 0
  while done + window <= num_steps:
    done += window
    table[done - 1] = window
    window = max(window - shrink, least)
  return table


def schedule(norm: str, num_steps: int) -> Row:
  """Returns the table of all evaluations, [R] a column; the start comes first.

  In l_1 the radius is 3, 2 and 1 epsilon for 30, 30 and 40 % of the steps, and
  each phase has one evaluation more, of its start.
  """
  phases = [(1.0, num_steps)]
  if norm == 'l1':
    part = math.ceil(0.3 * num_steps)
    phases = [(3.0, part), (2.0, part), (1.0, max(num_steps - 2 * part, 0))]
  rows = []
  for widening, length in phases:
    rows.append(Row(widening, True, 1.0, 0))
    for step, window in enumerate(windows(norm, length)):
      rows.append(Row(widening, False, 0.75 if step else 1.0, window))
  columns = zip(*rows, strict=True)
  dtypes = (np.float32, bool, np.float32, np.int32)
  return Row(*(np.array(c, t) for c, t in zip(columns, dtypes, strict=True)))
