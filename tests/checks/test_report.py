"""The report as text and JSON."""

import json

import numpy as np

from jax_robust_kd import checks


def test_report_as_text_and_json():
  found = [
    checks.Verdict('noise', 'amber', {'gain': 1 / 3}, 'More.'),
    checks.Verdict('box', 'green', {'not finite': np.inf}, 'Good.'),
  ]
  assert checks.worst(found) == 'amber' and checks.worst([]) == 'green'
  rows = checks.as_text(found)
  assert rows[0][:3] == ['noise', 'amber', 'gain 0.333']
  stored = json.loads(json.dumps(checks.as_json(found), allow_nan=False))
  assert stored['level'] == 'amber'
  assert stored['checks'][1]['value'] == {'not finite': 'inf'}
