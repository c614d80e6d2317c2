"""MODEL_CARD.md in the form of Hugging Face: front matter and plain words."""

import json
from typing import Any

from jax_robust_kd.report.page import accuracy_rows
from jax_robust_kd.report.reading import RunFiles
from jax_robust_kd.report.templating import render
from jax_robust_kd.runtime.console import printable


def model_card(run: RunFiles, command: str, teacher_sha256: str = '') -> str:
  """Returns the text of a model card.

  Args:
    run: an evaluated run.
    command: what makes the run again.
    teacher_sha256: of the teacher's weights, '' if there is none.
  """
  return render(
    'MODEL_CARD.md.j2',
    run=run,
    results=run.results,
    front_matter=_as_yaml(front_matter(run)),
    rows=accuracy_rows(run),
    command=command,
    teacher_sha256=teacher_sha256,
    text=as_markdown,
  )


def front_matter(run: RunFiles) -> dict[str, Any]:
  """Returns the head of the card: `model-index`, one metric for each attack."""
  r = run.results
  metrics = []
  for row in accuracy_rows(run):
    attacked = row['name'] != 'clean'
    under = f' under {row["name"]}, {r["norm"]} {r["eps"]}' if attacked else ''
    metrics.append(
      {
        'type': 'accuracy',
        'name': f'Accuracy{under}',
        'value': round(row['value'], 2),
      }
    )
  result = {
    'task': {'type': 'image-classification'},
    'dataset': {
      'name': r['dataset'],
      'type': r['dataset'],
      'split': r['split'],
    },
    'metrics': metrics,
  }
  return {
    'library_name': 'jax_robust_kd',
    'pipeline_tag': 'image-classification',
    'tags': ['adversarial-robustness', 'knowledge-distillation', 'jax'],
    'model-index': [{'name': run.label, 'results': [result]}],
  }


def _as_yaml(value: Any, indent: int = 0) -> str:
  """Writes dicts, lists and scalars as YAML; strings are quoted as in JSON."""
  space = ' ' * indent
  if isinstance(value, dict):
    return ''.join(
      f'{space}{key}:{_below(item, indent)}' for key, item in value.items()
    )
  return ''.join(
    f'{space}- {_as_yaml(item, indent + 2).lstrip()}'
    if isinstance(item, dict)
    else f'{space}- {json.dumps(item)}\n'
    for item in value
  )


def _below(item: Any, indent: int) -> str:
  if isinstance(item, (dict, list)):
    return '\n' + _as_yaml(item, indent + 2)
  return f' {json.dumps(item)}\n'


def as_markdown(text: Any) -> str:
  """Returns text that shows as itself in Markdown, in one line of a table."""
  text = printable(' '.join(str(text).split()))
  for mark in '\\`*_{}[]<>|#':
    text = text.replace(mark, '\\' + mark)
  return text
