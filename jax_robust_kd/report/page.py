"""report.html of one run: a page that opens from disk."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_robust_kd.report import plots, strips
from jax_robust_kd.report.evidence import Evidence
from jax_robust_kd.report.numbers import (
  ClassAccuracy,
  by_class,
  confusion,
  differing_settings,
  percent_interval,
)
from jax_robust_kd.report.reading import RunFiles
from jax_robust_kd.report.templating import render
from jax_robust_kd.threat import parse_radius


class Subject(NamedTuple):
  """What one page tells of one run.

  Attributes:
    run: its files.
    class_names: [K].
    evidence: what the network says of the images, None where nobody asked it.
    epsilon: label -> curve of `epsilon_curve`, of the run, its teacher, its
      baseline.
    recipe: the config of the method as shipped, {} where there is none.
    command: what makes the run again.
  """

  run: RunFiles
  class_names: tuple[str, ...]
  evidence: Evidence | None = None
  epsilon: dict[str, dict[str, list[float]]] = {}
  recipe: dict[str, Any] = {}
  command: str = ''


def one_run(subject: Subject) -> str:
  """Returns the page of one run."""
  run = subject.run
  label = np.array(run.images['label'], int)
  classes = by_class(
    label, run.correct('clean'), run.correct('robust'), len(subject.class_names)
  )
  return render(
    'run.html.j2',
    run=run,
    results=run.results,
    facts=facts(run),
    accuracy=accuracy_rows(run),
    classes=class_rows(classes, subject.class_names),
    worst=classes,
    worst_name=subject.class_names[classes.worst_class],
    figures=_figures(subject, label),
    strips=strips.make_strips(subject.evidence) if subject.evidence else {},
    differing=differing_settings(run.config, subject.recipe)
    if subject.recipe
    else [],
    command=subject.command,
    gap=best_and_last(run),
  )


def facts(run: RunFiles) -> list[tuple[str, str]]:
  """Returns what was asked, as (name, text)."""
  r = run.results
  speed = [line['images_per_second'] for line in run.speed if line]
  texts = [
    ('threat model', f'{r["norm"]}, epsilon {r["eps"]} (pixel range 0-1)'),
    ('data', f'{r["dataset"]}, {r["num_examples"]} images of {r["split"]}'),
    ('student', f'{r["architecture"]}, {r["parameters"]:,} parameters'),
    ('teacher', r.get('teacher') or 'none'),
    ('checkpoint', f'{r["checkpoint"]}, step {r["checkpoint_step"]}, chosen '
     f'by {r["chosen_by"]}'),
    ('seed', str(r['seed'])),
    ('precision', r['precision']),
    ('commit', r['commit'] or 'unknown'),
    ('version', f'{r["version"]}, JAX {r["jax"]}'),
    ('weights', f'sha256 {r["sha256"][:16]}'),
  ]  # fmt: skip
  if speed:
    texts.append(
      ('speed', f'{np.median(speed):,.0f} training images/s, median')
    )
  return texts


def accuracy_rows(run: RunFiles) -> list[dict[str, Any]]:
  """Returns name, accuracy and 95 % interval, clean first, worst case last."""
  rows = []
  for name in ('clean', *run.attacks, 'robust'):
    if name not in run.images:
      continue  # a named suite; its parts are there
    flags = run.correct(name)
    asked = np.array([cell != '' for cell in run.images[name]])
    low, high = percent_interval(flags)
    shown = {'clean': 'clean', 'robust': 'worst case'}.get(name, name)
    rows.append(
      {
        'name': shown,
        'value': 100 * float(flags.mean()),
        'low': low,
        'high': high,
        'asked': int(asked.sum()),
      }
    )
  return rows


def class_rows(
  classes: ClassAccuracy, names: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns a row for each class that has images."""
  return [
    {
      'name': names[int(k)],
      'count': int(classes.images[k]),
      'clean': float(classes.clean[k]),
      'robust': float(classes.robust[k]),
    }
    for k in np.flatnonzero(classes.images)
  ]


def _figures(subject: Subject, label: np.ndarray) -> dict[str, str]:
  run, count = subject.run, len(subject.class_names)
  rows = accuracy_rows(run)
  figures = {
    'accuracy': plots.accuracy_bars(
      [r['name'] for r in rows],
      [r['value'] for r in rows],
      [(r['low'], r['high']) for r in rows],
    )
  }
  if subject.epsilon:
    figures['epsilon'] = epsilon_figure(
      subject.epsilon, 100 / count, radius_of(run)
    )
  figures |= training_figures(run)
  found = subject.evidence
  if found is not None:
    clean = found.logits.argmax(axis=1)
    names = subject.class_names
    figures['confusion_clean'] = plots.confusion_matrix(
      'Confusion without attack', confusion(label, clean, count), names
    )
    figures['confusion_attacked'] = plots.confusion_matrix(
      'Confusion under attack',
      confusion(label, predicted_under_attack(found), count),
      names,
    )
  return figures


def predicted_under_attack(found: Evidence) -> np.ndarray:
  """Returns [N] the class under the attack that left the largest margin."""
  predicted = found.logits.argmax(axis=1)
  largest = strips.margin_of(found.logits, found.label)
  for shown in found.attacked.values():
    margin = strips.margin_of(shown.logits, found.label[shown.rows])
    worse = margin > largest[shown.rows]
    predicted[shown.rows[worse]] = shown.logits[worse].argmax(axis=1)
    largest[shown.rows[worse]] = margin[worse]
  return predicted


def radius_of(run: RunFiles) -> float:
  """Returns the evaluated radius as a number, in pixel range 0-1."""
  return parse_radius('eps', run.results['eps'])


def epsilon_figure(
  curves: dict[str, dict[str, list[float]]], chance: float, radius: float
) -> str:
  """Returns the plot of accuracy against the radius, down to chance."""
  lines = []
  for name, curve in curves.items():
    share = np.array(curve['correct']) / np.array(curve['total'])
    ends = [
      percent_interval(np.arange(total) < correct)
      for correct, total in zip(curve['correct'], curve['total'], strict=True)
    ]
    low, high = zip(*ends, strict=True)
    lines.append(
      plots.Curve(name, curve['epsilon'], list(100 * share), low, high)
    )
  return plots.curves(
    'Accuracy against epsilon',
    lines,
    ('epsilon (pixel range 0-1)', 'accuracy in %'),
    marks=[(radius, 'evaluated radius')],
    chance=chance,
  )


def training_figures(run: RunFiles) -> dict[str, str]:
  """Returns the loss and the validation accuracy over the steps."""
  figures = {}
  lines = [line for line in run.metrics if 'loss' in line]
  if lines:
    figures['loss'] = plots.curves(
      'Training loss',
      [plots.Curve('loss', *_columns(lines, 'step', 'loss'))],
      ('step', 'loss'),
    )
  checked = [line for line in run.metrics if 'val_robust' in line]
  if checked:
    figures['validation'] = plots.curves(
      'Validation accuracy',
      [
        plots.Curve(text, steps, [100 * y for y in values])
        for key, text in (('val_clean', 'clean'), ('val_robust', 'attacked'))
        for steps, values in [_columns(checked, 'step', key)]
      ],
      ('step', 'accuracy in %'),
      marks=[(run.results['checkpoint_step'], 'evaluated checkpoint')],
    )
  return figures


def best_and_last(run: RunFiles) -> tuple[float, float] | None:
  """Returns the highest and the last robust validation accuracy, in percent."""
  values = [100 * m['val_robust'] for m in run.metrics if 'val_robust' in m]
  return (max(values), values[-1]) if values else None


def _columns(lines: list[dict], *keys: str) -> list[list[float]]:
  return [[line[key] for line in lines] for key in keys]
