"""Every setting, once, with its default and its meaning.

Groups are named after what they feed and keys after its arguments. Config
files only override.
"""

from typing import Any

from jax_robust_kd.config.names import Settings
from jax_robust_kd.core import CLEAN, ROBUST

# A ConfigDict. Its own annotations make a union of every key's types.
Config = Any


def base_config(dataset: str = 'digits') -> Config:
  """Returns all settings with their defaults, locked against new ones."""
  c: Any = Settings(prefix='')
  c.seed = 0  # of every random number of the run
  c.precision = 'float32'  # or 'bfloat16': compute; weights stay float32
  c.sync_bn = False  # BatchNorm over all devices; else each has its own
  c.baseline = ''  # method to train beside, same student, for the final table
  c.log_every = 20  # steps between lines of metrics.jsonl
  c.data = _data(dataset)
  c.student = dict(name='resnet18')  # name in MODELS, then its fields
  c.teacher = _teacher()
  c.clean_teacher = _teacher()  # of methods that ask a second, accurate one
  c.peer = dict(name='')  # of methods that train two; '': as the student
  c.method = dict(name='advfunmatch')  # name in METHODS, then its arguments
  c.train_attack = dict(  # the inner maximization
    norm='linf',  # or 'l2'
    epsilon='8/255',  # radius, pixel range 0-1; a string, kept exact
    step_size='2/255',
    num_steps=10,
    init='gaussian',  # 'zero', 'uniform' in the ball, 0.001 N(0, 1)
    bn='eval',  # student's BatchNorm when attacked: 'eval' or 'batch'
  )
  c.optimizer = _optimizer()
  c.validation = dict(
    every_epochs=5,
    attack='pgd-10',  # on validation images; chooses `best`
  )
  c.eval = Settings(_eval(), prefix='eval.')
  c.check = dict(num_images=100)  # that `--mode check` attacks by itself
  c.save = dict(  # checkpoints to resume from
    every_steps=500,
    keep=2,
    on_failure='stop',  # or 'go_on': say so, and try again next time
  )
  if dataset == 'digits':
    _shrink_to_digits(c)
  return c.lock()


def _teacher() -> dict:
  return dict(
    checkpoint='',  # workdir of a finished run, file of weights or 'zoo:NAME'
    arch='',  # of a file: 'wide_resnet:depth=34,width=10'; '': as its keys say
    function='',  # in place of both: 'package.module:name', images to logits
    config='',  # with none of them: the config that trains it, first, once
    set={},  # settings of that config, such as dict(student=dict(width=16))
    sha256='',  # refuse any other weights than these
  )


def _optimizer() -> dict:
  return dict(
    name='sgd',  # or 'adamw'
    learning_rate=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    decay_on='kernels',  # or 'all'
    clip_norm=0.0,  # largest norm of the gradient; 0: no clipping
    schedule='cosine',  # 'step', 'constant'
    milestones=(0.5, 0.75),  # shares of the run, for 'step'
    decay=0.1,  # at each milestone
    warmup_epochs=0.0,
    epochs=200,
    ema_decay=0.0,  # averaged student weights; 0: none
    swa_start=0.0,  # their plain mean each epoch from this share on; 0: none
    awp_gamma=0.0,  # adversarial weight perturbation; 0: none
    awp_warmup_epochs=0.0,
    accumulate=1,  # parts of a batch, one after the other, to save memory
  )


def _eval() -> dict:
  return dict(
    suite=('fgsm', 'pgd-20', 'cw-20'),  # at the end, on test images
    threat='',  # threat model by name: 'linf_8_255', 'l2_0.5', ...
    norm='',  # or by its parts ('l1' too); '' is that of `train_attack`
    epsilon='',
    step_size='',
    num_examples=0,  # of the test split; 0: all
    batch_size=256,  # over all devices of a process
    checkpoint='best',  # or 'last'
    attack_precision='float32',  # or 'bfloat16'; float32 always decides
    save_images=True,  # keep adversarial images beside the flags
    corruptions=(),  # such as ('fog_3',), or ('all',): CIFAR-10-C
  )


def teacher_group(c: Config, name: str) -> tuple[str, Config]:
  """Returns the group of a config that tells of a teacher: its name, itself."""
  group = {ROBUST: 'teacher', CLEAN: 'clean_teacher'}[name]
  return group, c[group]


def is_trained_first(given: Config) -> bool:
  """Returns whether a teacher's group asks for one that is trained first."""
  return bool(given.config and not (given.checkpoint or given.function))


def _data(dataset: str) -> dict:
  """The data group; what depends on the data set is set in `configs/`."""
  return dict(
    name=dataset,  # in DATASETS, any TFDS name, 'npz:FILE' or an image folder
    data_dir='',  # of TFDS; '' is TFDS_DATA_DIR or ~/tensorflow_datasets
    train_split='',  # TFDS splits, '' for the data set's own
    test_split='',
    num_train=0,  # use only the first images; 0: all
    val_size=0,  # training images held out; 0: the data set's default
    val='',  # which: 'last', 'stratified', or '': the latter for own images
    batch_size=128,  # over all devices
    image_size=0,  # side that images are brought to, in pixels; 0: as they are
    memory_gb=8.0,  # a set of more gigabytes of pixels streams from disk
    workers=4,  # processes that decode a streamed set; 0: a thread
    damaged='stop',  # or 'skip': train without an image, and name it
    extra=dict(  # generated images, mixed into every batch
      file='',  # .npz with image and label; '': none
      share=0.7,  # of each batch
      labels='file',  # or 'teacher': the class that it sees
    ),
    augment=dict(
      crop_pad=4,  # pixels of zero padding before a random crop; 0: off
      crop_shift=0,  # most pixels lost by Cropshift, in place of crop_pad
      resized_crop=0.0,  # smallest area of an enlarged crop, likewise
      flip=True,
      policy='',  # a name in data/policy_tables.py
      policy_ops=2,  # of RandAugment
      policy_magnitude=9,  # of RandAugment, 0 to 30
      cutout=0,  # side of the square; 0: off
      erase_prob=0.0,  # of a covered box of random shape
      erase_area=0.33,  # its largest share of the image
      mixup_alpha=0.0,  # Beta(alpha, alpha); 0: off
      cutmix_alpha=0.0,
      cutmix_prob=0.5,  # of CutMix where both are on, else of mixup
      cutout_fill=0.0,  # what squares and boxes are covered with, in [0, 1]
      label_smoothing=0.0,  # shared among all classes, in [0, 1]
    ),
  )


def _shrink_to_digits(c: Config) -> None:
  """Sets what differs for 8 x 8 images and runs of a minute."""
  c.data.batch_size = 64
  c.data.augment.update(crop_pad=1, flip=False)
  c.student = dict(name='small_resnet', depth=8, width=6)
  c.train_attack.update(epsilon='2/16', step_size='1/32', num_steps=5)
  c.optimizer.update(epochs=30, warmup_epochs=1.0)
  c.validation.every_epochs = 5
  c.save.every_steps = 100
