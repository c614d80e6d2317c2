"""Runs, resumes and tabulates any set of methods at one budget."""

from collections.abc import Sequence
import os
from pathlib import Path

import jax

from jax_robust_kd.compare import budget as budget_lib
from jax_robust_kd.compare import children, outputs, scatter
from jax_robust_kd.compare.configs import Run, plan_runs, with_seed
from jax_robust_kd.compare.cost import total_cost
from jax_robust_kd.runtime import console, lock
from jax_robust_kd.workdir import as_json, check_workdir

SAVED_CONFIG = Path(__file__).with_name('saved_config.py')


def run(
  configs: Sequence[str],
  workdir: Path,
  *,
  seeds: Sequence[int] = (0,),
  budget: str = 'epochs',
  jobs: int = 1,
  settings: Sequence[str] = (),
) -> bool:
  """Runs what is not finished and writes the tables.

  Teachers that configs ask for are trained once, in `workdir`, and shared.

  Args:
    configs: config files, 'path.py[:argument]' each, or one Python file that
      defines `get_runs()`, which returns a list of (label, config).
    workdir: for all files; the same call again goes on there.
    seeds: seeds that every config is trained with.
    budget: 'epochs', 'passes' or 'own', see `budget.match_epochs`.
    jobs: number of runs at once.
    settings: 'GROUP.KEY=VALUE' of all configs.

  Returns:
    Whether all runs are finished.

  Raises:
    UserError: a mistake, before anything runs.
    RunError: a file cannot be written.
    Preempted: SIGTERM came, and the runs have saved.
  """
  jax.config.update('jax_platforms', 'cpu')  # accelerators are for the runs
  teachers, students = plan_runs(configs, settings, workdir)
  notes = budget_lib.match_budgets(students, budget)
  runs = teachers + [with_seed(s, n) for n in seeds for s in students]
  for each in runs:
    check_workdir(each.folder, each.config, 'train')
  with lock.held(workdir):
    show_plan(students, runs)
    for note in notes:
      console.say(f'note: {note}')
    failures = children.run_all(
      [make_task(each) for each in runs],
      at_once=jobs,
      environment=_environment(workdir, jobs),
      after=lambda failures: outputs.write(workdir, runs, failures, notes),
    )
    outputs.show(workdir, outputs.write(workdir, runs, failures, notes))
  return not failures


def make_task(run: Run) -> children.Task:
  """Returns the process of a run."""
  flags = [
    f'--config={SAVED_CONFIG}:{run.folder / "config.json"}',
    f'--workdir={run.folder}',
  ]
  return children.Task(
    run.label if run.seed is None else f'{run.label}, seed {run.seed}',
    run.folder,
    children.main_command(flags),
    as_json(run.config),
    total_cost(run.config, run.cost),
    run.teachers,
  )


def _environment(workdir: Path, jobs: int) -> dict[str, str]:
  """Seeds share compiled programs, and several runs the device's memory."""
  environment = dict(os.environ)
  compiled = str((workdir / 'compiled').absolute())
  environment.setdefault('JAX_COMPILATION_CACHE_DIR', compiled)
  if jobs > 1:
    environment.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  return environment


def show_plan(students: list[Run], runs: list[Run]) -> None:
  """Prints what will run and what it costs."""
  teachers = [run for run in runs if run.group]
  unit = total_cost(students[0].config, students[0].cost)
  cells = []
  for each in teachers + students:
    same = [r for r in runs if (r.label, r.group) == (each.label, each.group)]
    num_done = sum(children.is_done(r.folder) for r in same)
    cells.append([
        each.label,
        each.source,
        str(each.config.optimizer.epochs),
        f'{each.cost.passes:.1f}',
        f'{total_cost(each.config, each.cost) / unit:.2f}',
        f'{num_done} of {len(same)}',
    ])  # fmt: skip
  console.table(
    f'{len(runs)} runs; the cost of a run is relative to {students[0].label}',
    ['', 'config', 'epochs', 'passes per step', 'cost', 'finished'],
    cells,
  )
  if not scatter.can_draw():
    console.say('note: no picture will be drawn, matplotlib is not installed')
