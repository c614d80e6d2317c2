r"""The whole story in minutes: teacher, robust student, fragile student.

python -m jax_robust_kd.main --config configs/quickstart.py \
  --workdir runs/quickstart
"""

from jax_robust_kd.config import base_config


def get_config():
  c = base_config('digits')
  c.method = dict(
    name='advfunmatch', inner='kl_to_teacher_adv', clean_weight=0.0
  )
  c.teacher.config = 'configs/teacher.py:digits'
  c.baseline = 'kd'  # the same student, distilled without attack
  return c
