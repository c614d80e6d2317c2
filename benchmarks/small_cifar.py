"""Any method's CIFAR-10 config with a student that a laptop core can train."""

from pathlib import Path

from jax_robust_kd.config import load_config

CONFIGS = Path(__file__).parent.parent / 'configs'


def get_config(method='rslad'):
  c = load_config(f'{CONFIGS}/{method}.py:cifar10')
  with c.unlocked():
    c.student = dict(name='small_resnet', depth=8, width=16, stem_stride=2)
  return c
