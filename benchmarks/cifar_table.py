"""Every method and every claim of the four papers, at one small budget.

  jax-robust-kd compare --configs benchmarks/cifar_table.py \
    --seeds 0,1 --jobs 2 --budget own --workdir runs/table \
    --config.data.data_dir=DIR --config.teacher.checkpoint=runs/robust \
    --config.clean_teacher.checkpoint=runs/clean

Both teachers were trained once before, on all 38,976 images:

  python -m jax_robust_kd.main --config benchmarks/small_cifar.py:pgd_at \
    --workdir runs/robust --config.student.width=32 --config.data.num_train=0 \
    --config.optimizer.epochs=14 --config.optimizer.ema_decay=0.995 \
    --config.train_attack.init=uniform --config.train_attack.num_steps=2 \
    --config.train_attack.step_size=6/255 --config.data.data_dir=DIR
  python -m jax_robust_kd.main --config benchmarks/small_cifar.py:natural \
    --workdir runs/clean --config.student.width=32 --config.data.num_train=0 \
    --config.optimizer.epochs=10 --config.optimizer.ema_decay=0.995 \
    --config.validation.every_epochs=5 --config.data.data_dir=DIR

Features, of a run and its seed:

  jax-robust-kd analyse --workdir runs/table/runs/gacd/seed-0 \
    --teacher runs/robust
  jax-robust-kd transfer --features runs/table/runs/gacd/seed-0 \
    --config configs/transfer.py:tiny_imagenet --workdir runs/gacd-elsewhere \
    --config.data.val_size=1000 --config.eval.num_examples=2000 \
    --config.eval.epsilon=4/255 --config.eval.step_size=1/255 \
    --config.data.data_dir=DIR

All train for the same epochs but one run, RSLAD at the compute of DARWIN.
"""

from jax_robust_kd.config import load_config

METHODS = (
  'rslad', 'natural', 'pgd_at', 'trades', 'mart', 'kd', 'funmatch', 'ard',
  'akd2', 'iad', 'adaad', 'adaiad', 'kdiga', 'igam', 'mtard', 'peeraid', 'igdm',
  'saad', 'dgad', 'rrm', 'fitnets', 'at', 'rkd', 'crd', 'advfunmatch', 'gacd',
  'mixacm', 'darwin',
)  # fmt: skip


def small(method, settings=None):
  """Returns a config of `small_cifar.py` with settings changed."""
  c = load_config(f'benchmarks/small_cifar.py:{method}')
  c.update_from_flattened_dict(settings or {})
  return c


def get_runs():
  """Returns (label, config) of every run."""
  iad = {
    'method.version': 'II',
    'method.robust_weight': 0.5,
    'method.clean_weight': 0.25,
    'method.begin': 0.2,
    'method.weigh_teacher': True,
  }
  maps, no_mixup = {'method.alpha_kl': 0.0}, {'data.augment.mixup_alpha': 0.0}
  return [
    *((method, small(method)) for method in METHODS),
    ('iad II', small('iad', iad)),
    # AdvFunMatch: AutoAugment against the older augmentation and none.
    ('advfunmatch cutout+cutmix', small('advfunmatch,cutout+cutmix')),
    ('advfunmatch crop+flip', small('advfunmatch,plain')),
    # GACD: weights by the teacher's probability against none.
    ('gacd unweighted', small('gacd', {'method.weight': 'one'})),
    # MixACM: maps alone, with soft labels, with mixup. Never an attack.
    ('acm', small('mixacm', maps | no_mixup)),
    ('acm + soft labels', small('mixacm', no_mixup)),
    ('acm + mixup', small('mixacm', maps)),
    # DARWIN: weights and branches.
    ('darwin uniform', small('darwin', {'method.weights': 'uniform'})),
    ('darwin last', small('darwin', {'method.weights': 'last'})),
    ('darwin one branch', small('darwin', {'method.b': 0})),
    (
      'rslad at the passes of darwin',
      small('rslad', {'optimizer.epochs': 11}),
    ),
    # Two official codes average the divergence over classes, which makes the
    # steps ten times smaller: too small for so few of them?
    ('ard scale 1', small('ard', {'method.scale': 1.0})),
    ('mtard scale 1', small('mtard', {'method.scale': 1.0})),
  ]
