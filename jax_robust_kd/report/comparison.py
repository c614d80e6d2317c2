"""report.html of several runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_robust_kd.report import plots
from jax_robust_kd.report.numbers import by_class, percent_interval
from jax_robust_kd.report.reading import RunFiles
from jax_robust_kd.report.templating import render


def several_runs(runs: Sequence[RunFiles]) -> str:
  """Returns the page that compares runs."""
  rows = [_comparison_row(run) for run in runs]
  dots = [
    plots.Dot(r['name'], r['clean'], r['robust'], r['clean_ends'],
              r['robust_ends'])
    for r in rows
  ]  # fmt: skip
  figures = {
    'robust_clean': plots.scatter(
      'Robust against clean accuracy',
      dots,
      ('clean accuracy in %', 'worst-case accuracy in %'),
    ),
    'seeds': plots.scatter(
      'Worst-case accuracy by seed',
      [plots.Dot(r['name'], r['seed'], r['robust']) for r in rows],
      ('seed', 'worst-case accuracy in %'),
    ),
  }
  priced = [r for r in rows if r['seconds']]
  if priced:
    figures['cost'] = plots.scatter(
      'Robustness against cost of training',
      [plots.Dot(r['name'], r['seconds'], r['robust']) for r in priced],
      ('seconds of training', 'worst-case accuracy in %'),
      log_x=True,
    )
  return render('runs.html.j2', rows=rows, figures=figures, runs=runs)


def _comparison_row(run: RunFiles) -> dict[str, Any]:
  label = np.array(run.images['label'], int)
  clean, robust = run.correct('clean'), run.correct('robust')
  classes = by_class(label, clean, robust, int(label.max()) + 1)
  batch = run.config['data']['batch_size']
  steps = run.metrics[-1]['step'] if run.metrics else 0
  speed = [s['images_per_second'] for s in run.speed]
  return {
    'name': run.label,
    'folder': str(run.folder),
    'seed': run.results['seed'],
    'clean': 100 * clean.mean(),
    'clean_ends': percent_interval(clean),
    'robust': 100 * robust.mean(),
    'robust_ends': percent_interval(robust),
    'worst': classes.worst,
    'worst_three': classes.worst_three,
    'parameters': run.results['parameters'],
    'count': len(label),
    'seconds': steps * batch / np.median(speed) if speed else None,
  }
