"""Any method on real CIFAR-10, at a size that two CPU cores can afford.

One student, one optimizer and the same images for all; what a method is stays
as its config has it: loss, augmentation, start of the attack, BatchNorm in it.
Without `teacher.checkpoint` its teachers are `small_cifar.py:teacher` and
`small_cifar.py:clean_teacher`; the table had a better one, see
`cifar_table.py`.
"""

from pathlib import Path

from jax_robust_kd.config import base_config, load_config

HERE = Path(__file__).parent
TEACHERS = ('teacher', 'clean_teacher')


def get_config(method='rslad'):
  """Takes the name of a config, or 'advfunmatch,cutmix' with an argument."""
  method, _, argument = method.partition(',')
  spec = f'cifar10,{argument}' if argument else 'cifar10'
  c = load_config(f'{HERE.parent}/configs/{method}.py:{spec}')
  taught = method in TEACHERS
  with c.unlocked():
    c.student = dict(name='small_resnet', depth=8, stem_stride=2)
    c.student.width = 32 if taught else 16
    c.optimizer = base_config('cifar10').optimizer
    if method in ('rslad', 'adaad'):
      del c.method.scale  # true divergences, as these rows were measured
  c.optimizer.update(epochs=12 if taught else 4, warmup_epochs=0.5)
  c.train_attack.update(epsilon='8/255', step_size='4/255', num_steps=3)
  # Nobody has used the last 10,000 training images for anything else.
  c.data.update(train_split='train[:40000]', test_split='train[40000:]')
  c.data.update(num_train=8000, val_size=1024, batch_size=128)
  c.eval.update(norm='linf', epsilon='8/255', step_size='2/255')
  c.eval.update(suite=('pgd-20', 'cw-20'), num_examples=2000)
  c.validation.every_epochs = 2
  for name in TEACHERS:
    if c[name].config:
      c[name].config = f'benchmarks/small_cifar.py:{name}'
  c.log_every = 50
  return c
