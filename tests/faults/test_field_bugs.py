"""Bugs found in the published code of this field, each made impossible here.

One test a bug, named after it. Each fails if this library had the bug.
"""

import ast
from functools import partial, reduce
import inspect
from pathlib import Path
import re
from typing import NamedTuple
import warnings

import flax.linen as nn
from helpers.steps import Tiny as StagedTiny
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_robust_kd import config as config_lib
from jax_robust_kd import data, main, models, threat
from jax_robust_kd.attacks import ATTACKS, Budget, as_plain_attack, ascent
from jax_robust_kd.attacks.suites import plan
from jax_robust_kd.core import (
  AXIS,
  Ascent,
  Output,
  TrainState,
  UserError,
  image_keys,
)
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.interop import torch_import
from jax_robust_kd.losses import kl_divergence
from jax_robust_kd.methods import METHODS
from jax_robust_kd.models.layers import BatchNorm
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.training import build, optim
from jax_robust_kd.training import run as train_lib
from jax_robust_kd.training.step import Recipe, create_state, train_step

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
SOURCE = sorted((ROOT / 'jax_robust_kd').rglob('*.py'))


@pytest.fixture(autouse=True)
def quick_compile():
  """Nothing here runs long enough to be worth optimizing."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


class Tiny(nn.Module):
  """One hidden layer with BatchNorm: enough, and compiled in no time."""

  @nn.compact
  def __call__(self, image, train):
    x = nn.Dense(16)(image.reshape(len(image), -1))
    x = nn.relu(BatchNorm(train)(x))
    return nn.Dense(10)(x), {'pooled': x}


class Setup(NamedTuple):
  """A training step and all it is called with."""

  recipe: Recipe
  state: TrainState
  teacher_variables: dict
  batch: dict  # [1, B, ...], as on one device


FORWARD = partial(models.forward, Tiny())


def tiny_variables(seed):
  image = jnp.zeros((2, 8, 8, 1))
  return Tiny().init(jax.random.key(seed), image, train=False)


def tiny_step(method, digits, **changes) -> Setup:
  """A step on digits with tiny networks."""
  variables, tx = tiny_variables(0), optax.sgd(0.05, 0.9)
  recipe = Recipe(
    method=method,
    maximize=partial(
      ascent, norm='linf', epsilon=0.1, step_size=0.05, num_steps=2, init='zero'
    ),
    augment=data.make_augment(
      num_classes=10,
      crop_pad=0,
      flip=False,
      cutout=0,
      mixup_alpha=0.0,
      cutmix_alpha=0.0,
    ),
    student=FORWARD,
    teachers=dict.fromkeys(method.teachers, FORWARD),
    tx=tx,
    attack_mode='eval',
    total_steps=100,
  )._replace(**changes)
  state = create_state(seed=0, variables=variables, tx=tx)
  batches = data.train_batches(
    digits.train, batch_size=16, seed=0, start_step=0
  )
  teacher = dict.fromkeys(method.teachers, tiny_variables(1))
  return Setup(recipe, state, teacher, next(batches))


def one_step(setup, state=None):
  step = on_one_device(partial(train_step, setup.recipe))
  return step(state or setup.state, setup.teacher_variables, setup.batch)


def on_one_device(step):
  return jax.jit(
    jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name=AXIS)
  )


def assert_bitwise(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def parse(*flags):
  path = ROOT / 'configs/pgd_at.py'
  argv = ['main', f'--config={path}:digits', '--workdir=unused', *flags]
  return main.parse(argv).config


# ARD, AdaAD, RSLAD: nn.KLDivLoss() averages over the classes too.


def test_bug01_kl_is_summed_over_classes_not_averaged():
  student = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
  teacher = jnp.log(jnp.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]))
  by_hand = [0.25 * np.log(2), 0.7 * np.log(8)]
  np.testing.assert_allclose(
    kl_divergence(student, teacher), by_hand, rtol=1e-6
  )
  # Ninety-seven classes that nobody believes in must not make it smaller.
  more = partial(jnp.pad, pad_width=((0, 0), (0, 97)), constant_values=-1e3)
  np.testing.assert_allclose(
    kl_divergence(more(student), more(teacher)), by_hand, rtol=1e-6
  )


# ARD main.py: the second decay starts from the first learning rate again.


def test_bug02_second_decay_multiplies_what_the_first_one_left():
  schedule = optim.make_schedule(
    'step',
    learning_rate=0.1,
    total_steps=300,
    warmup_steps=0,
    milestones=(215 / 300, 260 / 300),  # of the ARD paper
    decay=0.1,
  )
  rates = [float(schedule(step)) for step in (214, 215, 260, 299)]
  np.testing.assert_allclose(rates, [0.1, 0.01, 0.001, 0.001], rtol=1e-6)


# AdaAD main.py: args.warmup_lr_epoch and args.mixture_alpha do not exist.


def load_digits_config(path):
  takes_dataset = 'dataset' in path.read_text().partition('def get_config')[2]
  c = config_lib.load_config(f'{path}:digits' if takes_dataset else str(path))
  config_lib.validate(c)
  return c


def shrink(c):
  """As the config says, but with little work in a step."""
  c.data.batch_size = 16
  c.train_attack.num_steps = 1
  return c


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_bug03_every_config_file_runs(path, digits, monkeypatch):
  """Two steps, with everything as in the file but the networks."""
  c = shrink(load_digits_config(path))
  assert build.make_student(c, digits).num_classes == 10
  # Two methods compare stages, which the quicker network has not.
  staged = path.stem in ('fitnets', 'mixacm')
  network = StagedTiny(4) if staged else Tiny()
  monkeypatch.setattr(build, 'make_model', lambda *args: network)
  student, method = build.init_network(c, digits), build.make_method(c)
  for name in method.teachers:
    _, teacher = config_lib.teacher_group(c, name)
    config_lib.validate(config_lib.load_config(teacher.config))
  teachers = dict.fromkeys(method.teachers, build.init_network(c, digits))
  peer = build.init_network(c, digits, build.make_peer)
  networks = build.Networks(student, teachers, peer if method.peer else None)
  recipe, _ = build.make_recipe(c, networks, digits, 10)
  state = build.make_state(c, recipe, networks, digits)
  step = on_one_device(partial(train_step, recipe))
  batches = data.train_batches(
    digits.train, batch_size=16, seed=0, start_step=0
  )
  for _ in range(2):
    weights = {name: t.variables for name, t in teachers.items()}
    state, values = step(state, weights, next(batches))
    assert all(np.isfinite(v) for v in values.values())
  assert int(state.step) == 2
  plan((c.validation.attack, *c.eval.suite), threat.make_budget(c))


@pytest.mark.parametrize('dataset', ['cifar10', 'cifar100', 'svhn_cropped'])
def test_bug03_every_config_file_is_valid_for_every_data_set(dataset):
  for path in CONFIGS:
    if path.stem != 'quickstart':  # digits by its nature
      c = config_lib.load_config(f'{path}:{dataset}')
      config_lib.validate(c)
      build.make_method(c)


def test_bug03_every_setting_is_read_somewhere():
  """A setting that nothing reads is a promise that nobody keeps."""
  text = ''.join(code_of(p) for p in SOURCE if p.parent.name != 'config')
  text = text.replace(' o.', ' c.optimizer.').replace('=o.', '=c.optimizer.')
  text = text.replace('(o.', '(c.optimizer.').replace('each.', 'c.')
  text = text.replace('given.', 'c.teacher.')
  c = config_lib.base_config().to_dict()
  augment = inspect.signature(data.make_augment).parameters
  assert c['data'].pop('augment').keys() <= augment.keys()
  for key in ('norm', 'epsilon', 'step_size'):  # read by `threat_model`
    c['eval'].pop(key)
  for key in data.Reading._fields:  # passed on by name
    c['data'].pop(key)
  assert c.pop('clean_teacher') == c['teacher']  # read by `teacher_group`
  for group in ('student', 'method'):  # passed on as arguments, which checks
    c.pop(group)
  for group, value in c.items():
    keys = (
      [f'{group}.{k}' for k in value] if isinstance(value, dict) else [group]
    )
    for key in keys:
      assert re.search(rf'\bc\.{re.escape(key)}\b', text), key


def test_bug03_the_evaluated_threat_model_is_read():
  c = config_lib.base_config()
  c.eval.update(norm='l2', epsilon='0.5', step_size='0.25')
  assert threat.make_budget(c)[:3] == ('l2', 0.5, 0.25)


# AdaAD main.py: type=bool makes `--rand_init False` true.


def test_bug04_false_on_the_command_line_is_false():
  for text in ('False', 'false', '0'):
    c = parse(
      f'--config.optimizer.nesterov={text}',
      f'--config.data.augment.flip={text}',
    )
    assert c.optimizer.nesterov is False and c.data.augment.flip is False
  assert parse('--config.data.augment.flip=true').data.augment.flip is True
  with pytest.raises(UserError, match='nesterov'):
    parse('--config.optimizer.nesterov=no')


# AdaAD: resume restores the weights and starts the optimizer afresh.


def test_bug05_resume_restores_the_optimizer(digits, tmp_path):
  setup = tiny_step(METHODS['pgd_at'](), digits)
  state, _ = one_step(setup)
  folder = checkpoint.open_folder(tmp_path, 'last', 1)
  checkpoint.save(folder, 1, jax.tree.map(np.array, state), {})
  checkpoint.wait(folder)
  found = checkpoint.restore(folder, setup.state)
  folder.close()
  assert found is not None
  expected = one_step(setup, state)
  assert_bitwise(one_step(setup, found[0]), expected)
  # What the bug would do: that this differs shows that momentum matters.
  afresh = found[0].replace(opt_state=setup.state.opt_state)
  wrong, _ = one_step(setup, afresh)
  with pytest.raises(AssertionError):
    assert_bitwise(wrong.params, expected[0].params)


# AdaAD, RSLAD: the best checkpoint is chosen by accuracy on the test set.


def test_bug06_best_checkpoint_is_chosen_on_held_out_training_images(
  tmp_path, digits
):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (400, 8, 8, 1), np.uint8)  # all different
  label = rng.integers(0, 5, 400)
  path = tmp_path / 'own.npz'
  np.savez(
    path,
    train_image=image[:300],
    train_label=label[:300],
    test_image=image[300:],
    test_label=label[300:],
  )
  own = data.load(f'npz:{path}')
  parts = [
    {i.tobytes() for i in split.image}
    for split in (own.train, own.val, own.test)
  ]
  assert sum(map(len, parts)) == len(set.union(*parts)) == 400
  assert parts[2] == {i.tobytes() for i in image[300:]}
  assert parts[1]

  c = shrink(load_digits_config(ROOT / 'configs/pgd_at.py'))
  c.validation.attack = 'fgsm'
  untouchable = data.Split(None, None)  # type: ignore[arg-type]
  only_val = digits._replace(train=untouchable, test=untouchable)
  validate = train_lib._make_validate(c, FORWARD, only_val)
  setup = tiny_step(METHODS['pgd_at'](), digits)
  values = validate(setup.state)
  image = data.to_float(digits.val.image)
  logits = FORWARD(tiny_variables(0), image, 'eval').logits
  right = np.argmax(logits, axis=1) == digits.val.label
  assert values['val_clean'] == pytest.approx(right.mean())


# ARD, RSLAD, AdaAD, DeepMind: the BatchNorm mode in the attack, by accident.


def test_bug07_bn_modes_differ_and_only_training_moves_the_averages(digits):
  variables = tiny_variables(0)
  image = data.to_float(digits.train.image[:16])
  outs = {m: FORWARD(variables, image, m) for m in models.MODES}
  assert np.array_equal(outs['batch'].logits, outs['train'].logits)
  assert not np.allclose(outs['batch'].logits, outs['eval'].logits, atol=1e-2)
  for mode in ('batch', 'eval'):
    assert_bitwise(outs[mode].batch_stats, variables['batch_stats'])
  with pytest.raises(AssertionError):
    assert_bitwise(outs['train'].batch_stats, variables['batch_stats'])


def keep_image(rng, loss_fn, image):
  """An attack that moves nothing, after one look at its loss."""
  del rng
  return Ascent(image + 0.0 * jnp.sum(loss_fn(image)), image[None])


@pytest.mark.parametrize('mode', ['eval', 'batch'])
def test_bug07_attack_bn_is_a_setting_and_leaves_the_averages(mode, digits):
  def look_often(rng, loss_fn, image):
    for _ in range(3):
      image = keep_image(rng, loss_fn, image).adv
    return Ascent(image, image[None])

  after = []
  for maximize in (keep_image, look_often):
    setup = tiny_step(
      METHODS['pgd_at'](), digits, maximize=maximize, attack_mode=mode
    )
    assert passes(setup)['student'] == [mode] * (1 + 2 * len(after)) + ['train']
    after.append(one_step(setup)[0].batch_stats)
  assert_bitwise(*after)


def passes(setup) -> dict[str, list]:
  """The mode of each pass of each network in one traced step."""
  seen = {'student': [], 'teacher': []}

  def record(name, variables, image, mode):
    seen[name].append(mode)
    return FORWARD(variables, image, mode)

  recipe = setup.recipe._replace(
    student=partial(record, 'student'),
    teachers=dict.fromkeys(setup.recipe.teachers, partial(record, 'teacher')),
  )
  jax.eval_shape(
    on_one_device(partial(train_step, recipe)),
    setup.state,
    setup.teacher_variables,
    setup.batch,
  )
  return seen


# RSLAD: four drifting copies of one script, for two data sets and two models.


def constants(path) -> set[str]:
  """The strings of a file that are not documentation."""
  nodes = ast.walk(ast.parse(code_of(path)))
  return {str(n.value) for n in nodes if isinstance(n, ast.Constant)}


def test_bug08_data_set_and_model_are_settings():
  general = [p for p in SOURCE if p.parent.name in ('methods', 'attacks')] + [
    ROOT / f'jax_robust_kd/{name}.py'
    for name in (
      'losses',
      'job',
      'training/run',
      'training/step',
      'training/build',
      'evaluation/evaluate',
    )
  ]
  names = {*data.DATASETS, *models.MODELS}
  for path in general:
    assert not names & constants(path), path
  for path in CONFIGS:
    if path.stem != 'quickstart':
      for name in data.DATASETS:
        assert config_lib.load_config(f'{path}:{name}').data.name == name


# DeepMind datasets.py: drop_remainder=True in evaluation too.


def linear(variables, image, mode):
  del mode
  return Output(image.reshape(len(image), -1) @ variables, {}, {})


def test_bug09_evaluation_sees_every_image(digits):
  test = digits.test._replace(
    image=digits.test.image[:101], label=digits.test.label[:101]
  )
  flat = digits.train.image.reshape(-1, 64) / np.float32(255)
  weight = np.linalg.lstsq(flat, np.eye(10)[digits.train.label], rcond=None)[0]
  weight = np.float32(weight)
  logits = test.image.reshape(101, -1) / np.float32(255) @ weight
  expected = np.argmax(logits, axis=1) == test.label
  assert expected[96:].sum() > 0  # the last ones matter
  for batch_size in (16, 64, 128):  # none divides 101
    found = evaluate.evaluate_suite(
      evaluate.make_victim(linear, jnp.asarray(weight)),
      test,
      evaluate.Settings(('fgsm',), Budget('linf', 1e-6, 1e-6), 0, batch_size),
    )
    np.testing.assert_array_equal(found.correct['clean'], expected)
    assert found.correct['robust'].shape == (101,)
    assert found.correct['robust'][96:].any()


# DeepMind eval.py: num_classes=10 for CIFAR-100 too.


@pytest.mark.parametrize('count', [3, 100])
def test_bug10_class_count_is_the_data_sets(count, tmp_path):
  label = np.random.default_rng(0).permutation(np.arange(200) % count)
  image = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), np.uint8)
  path = tmp_path / 'own.npz'
  np.savez(
    path,
    train_image=image[:200],
    train_label=label,
    test_image=image[200:],
    test_label=label,
  )
  own = data.load(f'npz:{path}')
  assert own.num_classes == count
  c = shrink(load_digits_config(ROOT / 'configs/pgd_at.py'))
  student = build.init_network(c, own)
  out = jax.eval_shape(
    lambda v: student.forward(v, jnp.zeros((2, 8, 8, 1)), 'eval'),
    student.variables,
  )
  assert out.logits.shape == (2, count)
  for path in SOURCE:
    assert not re.search(r'num_classes\s*=\s*\d', path.read_text()), path


# AutoAttack: attack objects changed between runs, and a seed from the clock.


@pytest.mark.parametrize('name', sorted(ATTACKS))
def test_bug11_an_attack_is_a_pure_function_of_its_key(name, digits):
  weight = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
  budget = Budget('linf', 0.1, 0.03, num_steps=2, num_restarts=2)
  image = jnp.asarray(data.to_float(digits.test.image[:8]))
  label = jnp.asarray(digits.test.label[:8])

  @jax.jit
  def attack(key):
    keys = image_keys(key, jnp.arange(8))
    return as_plain_attack(ATTACKS[name])(
      keys, lambda x: x.reshape(8, -1) @ weight, image, label, budget
    )

  first = attack(jax.random.key(0))
  other = attack(jax.random.key(1))
  assert np.array_equal(first, attack(jax.random.key(0)))
  if name not in ('fgsm', 'fab', 'fab_t'):  # which start at the image itself
    assert not np.array_equal(first, other)


def test_bug11_no_clock_and_no_global_generator_in_attacks_and_methods():
  for path in SOURCE:
    if path.stem == 'batching':  # says how long compiling took
      continue
    if path.parent.name in ('attacks', 'methods'):
      code = code_of(path).replace('jax.random', '')
      assert not re.search(r'\b(time|random|secrets|global)\b', code), path


def code_of(path) -> str:
  """A file without comments and documentation."""
  tree = ast.parse(path.read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      node.value.value = ''
  return ast.unparse(tree)


# RobustBench utils.py: special cases by model name, two bare `except:`.


def torch_state(model) -> dict:
  """A state_dict with the names that PyTorch's WideResNet has."""
  rule = torch_import.LAYOUTS['wide_resnet'][2]
  template = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
  )
  named, _ = jax.tree_util.tree_flatten_with_path(template)
  state = {}
  for path, leaf in named:
    key = torch_import.torch_key(tuple(p.key for p in path), rule)
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(len(leaf.shape), (0,))
    state[key] = np.ones([leaf.shape[i] for i in order], np.float32)
  return state


def test_bug12_importer_refuses_what_it_does_not_understand():
  model = models.build('wide_resnet', 10, dict(depth=10, width=1))
  state = torch_state(model)
  torch_import.import_state(state, model)
  for key in ('fc.bias', 'block2.layer.0.bn1.running_var', 'conv1.weight'):
    with pytest.raises(UserError):
      torch_import.import_state(
        {k: v for k, v in state.items() if k != key}, model
      )
  with pytest.raises(UserError, match='unused'):
    torch_import.import_state(state | {'fc2.weight': np.ones(3)}, model)
  with pytest.raises(UserError, match='shape'):
    torch_import.import_state(state | {'fc.bias': np.ones(9)}, model)


def test_bug12_no_bare_except_anywhere():
  for path in SOURCE:
    for node in ast.walk(ast.parse(path.read_text())):
      assert not (isinstance(node, ast.ExceptHandler) and node.type is None)


# BigVision distill: jax.tree_leaves and jax.tree_map, removed from JAX.


def dotted_names(path):
  """Every `jax.a.b` of a file, with the import aliases resolved."""
  tree = ast.parse(path.read_text())
  aliases = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for a in node.names:
        root = a.name if a.asname else a.name.partition('.')[0]
        aliases[a.asname or root] = root
    elif isinstance(node, ast.ImportFrom):
      for a in node.names:
        aliases[a.asname or a.name] = f'{node.module}.{a.name}'
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      name = ast.unparse(node)
      root, _, rest = name.partition('.')
      full = f'{aliases.get(root, "")}.{rest}'
      if re.fullmatch(r'(jax|optax|flax)(\.\w+)+', full):
        yield full


def test_bug13_no_name_that_jax_has_removed_or_is_about_to():
  import flax
  import optax

  roots = {'jax': jax, 'optax': optax, 'flax': flax}
  names = {name for path in SOURCE for name in dotted_names(path)}
  assert 'jax.tree.map' in names  # the search finds something
  with warnings.catch_warnings():
    warnings.simplefilter('error', DeprecationWarning)
    for name in sorted(names):
      root, *parts = name.split('.')
      reduce(getattr, parts, roots[root])
  gone = {'tree_map', 'tree_leaves', 'tree_multimap', 'xmap', 'core', 'lib'}
  assert not gone & {name.split('.')[1] for name in names if name[:4] == 'jax.'}


# AdaAD: the teacher passed twice, the student three times in training mode.


@pytest.mark.parametrize(
  'name,arguments,attacks,student,teacher',
  [
    # passes: of the student in the attack, in the loss; of the teacher
    ('pgd_at', {}, 1, 1, 0),
    ('trades', {}, 2, 2, 0),
    ('kd', {}, 0, 1, 1),
    ('rslad', {}, 1, 2, 3),  # XLA merges those of the same image
    ('adaad', {}, 1, 1, 2),
    ('adaad', {'alpha': 0.5}, 1, 2, 3),
    ('advfunmatch', {}, 1, 1, 2),
    ('advfunmatch', {'clean_weight': 0.5}, 1, 2, 3),
  ],
)
def test_bug14_each_pass_is_made_once_and_the_teacher_is_frozen(
  name, arguments, attacks, student, teacher, digits
):
  """With an attack that looks at its loss once."""
  setup = tiny_step(METHODS[name](**arguments), digits, maximize=keep_image)
  seen = passes(setup)
  assert seen['student'] == ['eval'] * attacks + ['train'] * student
  assert seen['teacher'] == ['eval'] * teacher


def test_bug14_each_pass_updates_the_averages_once(digits):
  """TRADES names two passes, x and then x': the averages see just these."""
  setup = tiny_step(METHODS['trades'](), digits, maximize=keep_image)
  state, _ = one_step(setup)
  image = data.to_float(setup.batch['image'][0])
  variables = tiny_variables(0)
  for _ in range(2):
    out = FORWARD(variables, image, 'train')
    variables = {**variables, 'batch_stats': out.batch_stats}
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-5),
    state.batch_stats,
    variables['batch_stats'],
  )
