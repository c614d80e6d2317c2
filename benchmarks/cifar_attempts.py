"""An attempt at each claim that does not show in `cifar_table.py`.

And the other weights of DARWIN:

  jax-robust-kd compare --configs benchmarks/cifar_attempts.py \
    --seeds 0 --jobs 2 --budget own --workdir runs/attempts \
    --config.data.data_dir=DIR --config.teacher.checkpoint=runs/robust \
    --config.clean_teacher.checkpoint=runs/clean
"""

from benchmarks.cifar_table import small


def get_runs():
  """Returns (label, config) of every run."""
  maps, no_mixup = {'method.alpha_kl': 0.0}, {'data.augment.mixup_alpha': 0.0}
  longer, longest = {'optimizer.epochs': 12}, {'optimizer.epochs': 16}
  clean = {'method.teacher_sees': 'clean'}
  last = {'method.b': 0, 'method.weights': 'last'}
  weights = ('boundary', 'disagreement', 'reliability')
  return [
    # MixACM: were 4 epochs too few?
    ('kd 16 epochs', small('kd', longest)),
    ('acm 16 epochs', small('mixacm', maps | no_mixup | longest)),
    ('acm + soft labels 16 epochs', small('mixacm', no_mixup | longest)),
    ('acm + mixup 16 epochs', small('mixacm', maps | longest)),
    ('mixacm 16 epochs', small('mixacm', longest)),
    # DARWIN: the teacher's view of the attacked image, or the targeted path?
    ('darwin clean teacher', small('darwin', clean)),
    (
      'darwin clean teacher one branch last',
      small('darwin', clean | last),
    ),
    # AdvFunMatch: does stronger augmentation need more epochs?
    ('advfunmatch 12 epochs', small('advfunmatch', longer)),
    ('advfunmatch crop+flip 12 epochs', small('advfunmatch,plain', longer)),
    # DARWIN: the weights and the branch that are left.
    *(
      (f'darwin {name}', small('darwin', {'method.weights': name}))
      for name in weights
    ),
    ('darwin targeted alone', small('darwin', {'method.b': 1})),
  ]
