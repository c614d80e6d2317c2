"""Settings: radii as strings, every config file, what differs."""

from pathlib import Path

import pytest

from jax_robust_kd import config, data, job, threat
from jax_robust_kd.core import UserError
from jax_robust_kd.training import build
from jax_robust_kd.workdir import as_json

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))


def test_radii_are_exact():
  assert threat.parse_radius('e', '8/255') == 8 / 255
  assert threat.parse_radius('e', ' 8 / 255 ') == 8 / 255
  assert threat.parse_radius('e', '0.5') == 0.5
  assert threat.parse_radius('e', '31/1000') == 0.031
  assert threat.parse_radius('e', '0.1') == 0.1


@pytest.mark.parametrize('text', ['0.031', '0.0314', '0.0078', '0.0157'])
def test_rounded_radii_are_said_not_changed(text):
  with pytest.raises(UserError, match='/255 if that is meant'):
    threat.parse_radius('e', text)


@pytest.mark.parametrize('text', ['0', '-0.1', '1/0', 'eight', '8/255/2', ''])
def test_radii_that_are_no_radii(text):
  with pytest.raises(UserError):
    threat.parse_radius('e', text)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_config_is_valid_on_digits(path):
  """Any config file may be given :digits, the quickstart is digits."""
  argument = '' if path.stem == 'quickstart' else ':digits'
  c = config.load_config(f'{path}{argument}')
  for each, _, _ in job.make_plan(c, Path('runs')):
    build.check(each, data.load('digits'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_files_are_short_and_begin_with_their_command(path):
  text = path.read_text()
  assert text.count('\n') <= 30
  assert f'--config configs/{path.name}' in text.split('"""')[1]


def test_every_method_has_a_config():
  from jax_robust_kd.methods import METHODS

  assert METHODS.keys() <= {p.stem for p in CONFIGS}


# Papers' own recipes for CIFAR-10: epochs, those at whose end the learning rate
# falls to a tenth (or the schedule), its first value, weight decay, batch;
SGD = {
    'natural': (200, 'cosine', 0.1, 5e-4, 128),  # no paper's
    'pgd_at': (200, (100, 150), 0.1, 5e-4, 128),
    'trades': (76, (74,), 0.1, 2e-4, 128),
    'mart': (120, (75, 90, 100), 0.01, 3.5e-3, 128),
    'kd': (200, 'cosine', 0.1, 5e-4, 128),  # no paper's
    'funmatch': (1000, 'cosine', 1e-3, 0.3, 512),  # AdamW: 3e-4 a step
    'fitnets': (240, (150, 180, 210), 0.05, 5e-4, 64),
    'at': (240, (150, 180, 210), 0.05, 5e-4, 64),
    'rkd': (240, (150, 180, 210), 0.05, 5e-4, 64),
    'crd': (240, (150, 180, 210), 0.05, 5e-4, 64),
    'rrm': (48, 'cosine', 0.1, 5e-4, 128),
    'ard': (200, (100, 150), 0.1, 2e-4, 128),
    'akd2': (200, (50, 150), 0.1, 5e-4, 128),
    'rslad': (300, (215, 260, 285), 0.1, 2e-4, 128),
    'iad': (200, (100, 150), 0.1, 2e-4, 128),
    'iad,II': (200, (100, 150), 0.1, 2e-4, 128),
    'adaad': (200, (100, 150), 0.1, 5e-4, 128),
    'adaiad': (200, (100, 150), 0.1, 5e-4, 128),
    'kdiga': (200, (100, 150), 0.1, 5e-4, 128),
    'igam': (205, (102.5, 153.75), 0.1, 2e-4, 32),  # of 320,000 steps
    'mtard': (300, (215, 260, 285), 0.1, 2e-4, 128),
    'peeraid': (300, (214, 259, 284), 0.1, 2e-4, 128),
    'igdm': (200, (100, 150), 0.1, 5e-4, 128),
    'saad': (200, (100, 150), 0.1, 5e-4, 128),
    'dgad': (200, (100, 150), 0.1, 5e-4, 128),
    'advfunmatch': (200, 'cosine', 0.1, 5e-4, 128),
    'gacd': (200, (100, 150), 0.1, 2e-4, 128),
    'mixacm': (200, 'cosine', 0.1, 5e-4, 128),
    'darwin': (200, (100, 150), 0.1, 5e-4, 128),
}  # fmt: skip
# start of the attack and the student's BatchNorm in it (all take 10 steps of
# 2/255 in a radius of 8/255; '' sees no attack while it trains);
STARTS = {
    'natural kd funmatch fitnets at rkd crd rrm kdiga mixacm': '',
    'pgd_at gacd': 'uniform eval',
    'ard iad iad,II akd2': 'uniform batch',
    'trades mart rslad adaad adaiad mtard peeraid igdm saad dgad': (
        'gaussian eval'
    ),
    'advfunmatch darwin': 'gaussian eval',
    'igam': 'uniform eval 1',  # the start alone
}  # fmt: skip
# temperature (none or 1 for the others) and factor of divergences averaged
# over 10 classes.
TEMPERATURES = {
    'kd': 4, 'funmatch': 10, 'fitnets': 4, 'at': 4, 'rkd': 4, 'crd': 4,
    'ard': 30, 'akd2': 2, 'adaiad': 30, 'peeraid': 5, 'mixacm': 4,
}  # fmt: skip
SCALES = dict(ard=0.1, rslad=0.1, adaad=0.1, mtard=0.1)
# weights of the loss, and other numbers of the method.
NUMBERS = {
    'trades': dict(beta=6), 'mart': dict(beta=5), 'kd': dict(alpha=0.9),
    'fitnets': dict(alpha=0, beta=100, gamma=1),
    'at': dict(alpha=0, beta=1000, gamma=1),
    'rkd': dict(alpha=0, beta=1, gamma=1, distance=25, angle=50),
    'crd': dict(alpha=0, beta=0.8, gamma=1, tau=0.07, momentum=0.5,
                negatives=16384, feature_dim=128),
    'rrm': dict(beta=0.005), 'ard': dict(alpha=1),
    'akd2': dict(clean_weight=0.1, robust_weight=0.6),
    'rslad': dict(alpha=5 / 6), 'adaad': dict(alpha=1),
    'iad': dict(begin=60 / 200, beta=0.1),
    'iad,II': dict(begin=40 / 200, beta=0.1, robust_weight=0.5,
                   clean_weight=0.25),
    'adaiad': dict(alpha=1, begin=60 / 200, beta=0.1),
    'kdiga': dict(gradient_weight=1, kl_weight=1),
    'igam': dict(begin=280 / 320, beta=2, gamma=10 * 32 / 255**2),
    'mtard': dict(weight_lr=0.025), 'igdm': dict(alpha=5),
    'peeraid': dict(clean=0.1, label=0, peer=0.1, peer_label=1,
                    peer_student=0.01),
    'saad': dict(alpha=1, beta=0, correction=1, entropy_scale=5, order=1),
    'dgad': dict(beta=0.1), 'advfunmatch': dict(clean_weight=0),
    'gacd': dict(beta=0.8, tau=0.07, power=1, feature_dim=128),
    'mixacm': dict(alpha_acm=5, alpha_ce=1, alpha_kl=1, p=1),
    'darwin': dict(a=1 / 6, b=0.5, tau=0.2),
}  # fmt: skip
# The field's usual optimizer: decay on kernels alone, too.
NESTEROV = ['natural', 'kd', 'kdiga', 'advfunmatch', 'mixacm']
SWA_FROM = {'akd2': 0.275, 'peeraid': 215 / 300, 'saad': 0.475}


def load_recipe(name, dataset):
  method, _, argument = name.partition(',')
  spec = f'{dataset},{argument}' if argument else dataset
  return config.load_config(f'{CONFIGS[0].parent}/{method}.py:{spec}')


@pytest.mark.parametrize('name', SGD)
def test_recipe_of_the_paper(name):
  c = load_recipe(name, 'cifar10')
  o = c.optimizer
  drops = o.schedule
  if drops == 'step':
    drops = pytest.approx(tuple(m * o.epochs for m in o.milestones))
    assert o.decay == 0.1
  expected = SGD[name]
  assert (o.epochs, drops) == expected[:2]
  found = (o.learning_rate, o.weight_decay, c.data.batch_size)
  assert found == pytest.approx(expected[2:])
  if o.name == 'sgd':
    assert (o.momentum, o.nesterov) == (0.9, name in NESTEROV)
    kernels = name in NESTEROV or name == 'igam'
    assert o.decay_on == ('kernels' if kernels else 'all')
  averages = (o.swa_start, o.ema_decay, o.awp_gamma)
  assert averages == pytest.approx((SWA_FROM.get(name, 0), 0, 0))
  for key, number in NUMBERS.get(name, {}).items():
    assert c.method[key] == pytest.approx(number), key
  t, scale = c.method.get('temperature', 1), c.method.get('scale', 1)
  assert t == TEMPERATURES.get(name, 1)
  assert scale == pytest.approx(SCALES.get(name, 1))
  start = next(v for k, v in STARTS.items() if name in k.split()).split()
  if start:
    a, steps = c.train_attack, int(start[2]) if start[2:] else 10
    assert (a.init, a.bn, a.num_steps) == (*start[:2], steps)
    assert (a.norm, a.epsilon, a.step_size) == ('linf', '8/255', '2/255')


def test_every_method_has_a_recipe():
  from jax_robust_kd.methods import METHODS

  names = {name for group in STARTS for name in group.split()}
  assert SGD.keys() == names == METHODS.keys() | {'iad,II'}


def test_what_differs_on_cifar100():
  """Batch and scales; all else of the recipes is the same on both."""
  batch = {n: load_recipe(n, 'cifar100').data.batch_size for n in SGD}
  assert batch == {n: 256 if n == 'ard' else SGD[n][4] for n in SGD}
  scale = {n: load_recipe(n, 'cifar100').method.scale for n in SCALES}
  assert scale == pytest.approx(dict(ard=0.01, rslad=0.1, adaad=1, mtard=0.1))


def test_evaluation_follows_the_attack_unless_told_otherwise():
  c = config.base_config('cifar10')
  c.train_attack.epsilon = '4/255'
  assert threat.threat_model(c) == ('linf', '4/255', '2/255')
  c.eval.epsilon = '2/255'
  assert threat.threat_model(c) == ('linf', '2/255', '2/255')
  assert c.train_attack.epsilon == '4/255'


def test_a_new_key_is_refused():
  for group in (config.base_config(), config.base_config().train_attack):
    with pytest.raises((KeyError, AttributeError), match='locked'):
      group.sede = 1


def test_differing_keys_have_dotted_names():
  a = {'x': {'y': 1, 'z': 2}, 'w': 3}
  b = {'x': {'y': 1, 'z': 5}, 'v': 3}
  assert config.differing_keys(a, b) == ['v', 'w', 'x.z']
  assert config.differing_keys(a, a) == []


def test_plan_of_the_quickstart():
  c = config.load_config(str(CONFIGS[0].parent / 'quickstart.py'))
  plan = job.make_plan(c, Path('runs/q'))
  assert [label for _, _, label in plan] == ['teacher', 'advfunmatch', 'kd']
  assert [str(f) for _, f, _ in plan] == [
      'runs/q/teacher', 'runs/q', 'runs/q/kd',
  ]  # fmt: skip
  student, baseline = plan[1][0], plan[2][0]
  assert student.teacher.checkpoint == 'runs/q/teacher'
  differing = config.differing_keys(as_json(student), as_json(baseline))
  assert {d.split('.')[0] for d in differing} == {'method', 'baseline'}


def test_threat_models_by_name():
  c = config.base_config('cifar10')
  c.eval.threat = 'l2_0.5'
  assert threat.threat_model(c) == ('l2', '0.5', '1/8')
  config.validate(c)
  c.eval.epsilon = '0.25'  # a part goes first
  assert threat.threat_model(c)[:2] == ('l2', '0.25')
  c.eval.threat = 'linf_8'
  with pytest.raises(UserError, match='linf_8_255'):
    config.validate(c)


def test_corruptions_by_name():
  from jax_robust_kd.evaluation import corruptions

  assert len(corruptions.chosen(('all',))) == 75
  assert corruptions.chosen(('fog_3',)) == ('fog_3',)
  with pytest.raises(UserError, match="'fog_6'"):
    corruptions.chosen(('fog_6',))


def test_version_two_of_iad_is_an_argument():
  """The same run as with every number of version II by hand."""
  for dataset in ('digits', 'cifar10'):
    one, two = (load_recipe(name, dataset) for name in ('iad', 'iad,II'))
    one.method.update(version='II', robust_weight=0.5, clean_weight=0.25)
    one.method.update(begin=40 / 200, weigh_teacher=True)
    assert one == two
  three = load_recipe('iad,III', 'digits')
  with pytest.raises(UserError, match=r"method.version='III'.*I, II"):
    build.check(three, data.load('digits'))
