"""networks.py: teachers that are no runs of this program."""

import sys
import types

from flax import nnx
from helpers.saved_runs import save_run
from helpers.torch_states import layout_state
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_robust_kd import __main__ as entry
from jax_robust_kd import job, main, models, networks
from jax_robust_kd.config import load_config
from jax_robust_kd.core import UserError
from jax_robust_kd.interop import zoo
from jax_robust_kd.interop.torch_import import import_state
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.runtime.files import read_json
from jax_robust_kd.training import build

FIELDS = {'depth': 8, 'width': 2}


def state_of(classes=10, channels=1):
  model = models.build('small_resnet', classes, FIELDS)
  return layout_state(model, 'resnet', channels)


def config(**teacher):
  c = job.copy(load_config('rslad:digits'))
  c.teacher.update({'config': '', **teacher})
  return c


@pytest.fixture
def file(tmp_path):
  np.savez(tmp_path / 'teacher.npz', **state_of())
  return str(tmp_path / 'teacher.npz')


def test_a_file_is_a_teacher(file, digits, capsys):
  teacher = networks.load_teacher(config(checkpoint=file), 'robust', digits)
  model = models.build('small_resnet', 10, FIELDS)
  variables = import_state(state_of(), model)
  assert teacher.sha256 == checkpoint.tree_sha256(variables)
  assert teacher.module == model and teacher.name == 'small_resnet'
  assert 'mean and std (none is assumed)' in capsys.readouterr().out
  image = jnp.asarray(digits.test.image[:4] / 255, jnp.float32)
  np.testing.assert_allclose(
    teacher.forward(teacher.variables, image, 'eval').logits,
    models.forward(model, variables, image, 'eval').logits,
    rtol=1e-5,
  )


def test_its_architecture_can_be_given(file, digits, capsys):
  arch = 'small_resnet:depth=8,width=2,activation=swish,mean=(0.5,),std=(0.2,)'
  c = config(checkpoint=file, arch=arch)
  teacher = networks.load_teacher(c, 'robust', digits)
  assert teacher.module is not None
  assert (teacher.module.activation, teacher.module.mean) == ('swish', (0.5,))
  assert not capsys.readouterr().out
  c.teacher.arch = 'small_resnet:depth=8,width=2'
  networks.load_teacher(c, 'robust', digits)
  assert 'name mean and std: it is given' in capsys.readouterr().out


@pytest.mark.parametrize(
  'given,changes,words',
  [
    ({'classes': 7}, {}, "has 7 classes, data set 'digits' has 10"),
    ({'channels': 3}, {}, "has 3 channels, data set 'digits' has 1"),
    ({}, {'arch': 'small_resnet:depth=14,width=2'}, 'what fits it is small'),
    ({}, {'arch': 'small_resnet(depth=8)'}, 'small_resnet.*is unknown'),
    ({}, {'arch': 'small_resnet:8,2'}, 'write it as wide_resnet:depth=34'),
    ({}, {'sha256': 'ab'}, 'has sha256 .*not teacher.sha256=ab'),
  ],
)
def test_what_does_not_fit_is_refused(
  tmp_path, digits, given, changes, words, monkeypatch
):
  np.savez(tmp_path / 'teacher.npz', **state_of(**given))
  c = config(checkpoint=str(tmp_path / 'teacher.npz'), **changes)
  with pytest.raises(UserError, match=words) as error:
    networks.load_teacher(c, 'robust', digits)
  assert '\n' not in str(error.value)


def test_batchnorm_without_running_averages_is_refused(tmp_path, digits):
  state = {k: v for k, v in state_of().items() if 'running_' not in k}
  np.savez(tmp_path / 'a.npz', **state)
  for arch in ('', 'small_resnet:depth=8,width=2'):
    c = config(checkpoint=str(tmp_path / 'a.npz'), arch=arch)
    with pytest.raises(UserError, match='without running averages') as error:
      networks.load_teacher(c, 'robust', digits)
    assert 'what fits it' not in str(error.value)


def test_a_workdir_is_none_of_these(tmp_path):
  assert not networks.is_file(str(tmp_path))
  assert not networks.is_file('runs/teacher')
  (tmp_path / 'run.pt').mkdir()
  assert not networks.is_file(str(tmp_path / 'run.pt'))
  for name in ('a.pt', 'a.pt:ema', 'a.safetensors', 'zoo:X'):
    assert networks.is_file(name)


def test_a_teacher_of_the_list_is_loaded_and_its_accuracy_compared(
  tmp_path, digits, monkeypatch, capsys
):
  known = zoo.Known(
    'digits/Linf/T', 'small_resnet:depth=8,width=2,activation=swish',
    (0.5,), (0.25,), 99.0, 50.0, '8/255', 'abc',
  )  # fmt: skip
  monkeypatch.setattr(zoo, 'known', lambda: {known.name: known})
  monkeypatch.setenv(zoo.VARIABLE, str(tmp_path))
  (tmp_path / 'digits/Linf').mkdir(parents=True)
  state = {**state_of(), 'mu': np.full((1, 1, 1, 1), 0.4)}
  np.savez(tmp_path / 'digits/Linf/T.npz', **state)
  nets = build.make_networks(config(checkpoint='zoo:T'), digits)
  module = nets.teachers['robust'].module
  # The file's own mean goes before the list's.
  assert module.mean == (0.4,) and module.std == (0.25,)
  assert module.activation == 'swish'
  said = ' '.join(capsys.readouterr().out.split())
  assert '99.00 % published: WARNING, they differ by more than 1' in said


class Linear(nnx.Module):
  def __init__(self, classes=10):
    self.head = nnx.Linear(64, classes, rngs=nnx.Rngs(0))

  def __call__(self, image):
    return self.head(image.reshape(len(image), -1))


@pytest.fixture
def mine(monkeypatch):
  module = types.ModuleType('my_networks')
  vars(module).update(linear=Linear(), other=Linear(7))
  monkeypatch.setitem(sys.modules, 'my_networks', module)


def run(workdir, method, *words):
  return main.main(
    ['main', f'--config=configs/{method}.py:digits', f'--workdir={workdir}',
     '--config.data.num_train=64', '--config.data.val_size=32',
     '--config.data.batch_size=32', '--config.eval.num_examples=20',
     '--config.student.width=2', '--config.optimizer.epochs=1',
     '--config.optimizer.warmup_epochs=0', '--config.train_attack.num_steps=1',
     '--config.validation.attack=fgsm', "--config.eval.suite=('fgsm',)",
     *words]
  )  # fmt: skip


def test_a_function_teaches(mine, tmp_path, capsys):
  spec = '--config.teacher.function=my_networks:linear'
  assert run(tmp_path, 'rslad', spec) == 0
  said = ' '.join(capsys.readouterr().out.split())
  assert 'my_networks:linear, 650 parameters, robust, from my_networks' in said
  assert not (tmp_path / 'teacher').exists()


@pytest.mark.parametrize(
  'method,word,message',
  [
    ('rslad', 'teacher.function=my_networks:other', 'has 7 classes, data set'),
    ('rslad', 'teacher.function=my_networks:none', "has no 'none'"),
    ('at', 'teacher.function=my_networks:linear', 'returns logits alone'),
  ],
)
def test_a_function_that_cannot_teach_is_refused(
  mine, tmp_path, capsys, method, word, message
):
  assert run(tmp_path, method, f'--config.{word}') == 2
  assert message in ' '.join(capsys.readouterr().err.split())


def test_a_file_teaches(file, tmp_path):
  spec = f'--config.teacher.checkpoint={file}'
  assert run(tmp_path / 'w', 'rslad', spec) == 0


def evaluate(*words):
  return entry.main(
    ['jax-robust-kd', 'eval', *words, '--data=digits', '--threat=linf_8_255',
     "--config.eval.suite=('fgsm',)", '--config.eval.num_examples=30']
  )  # fmt: skip


def test_eval_gives_a_number_for_a_file(file, tmp_path, capsys):
  assert (
    evaluate('--model', file, '--arch', 'small_resnet:depth=8,width=2') == 0
  )
  card = read_json(tmp_path / 'teacher.npz.digits/results.json')
  assert card['checkpoint'] == card['name'] == file
  assert (card['norm'], card['eps'], card['num_examples']) == (
    'linf', '8/255', 30,
  )  # fmt: skip
  assert card['architecture'] == 'small_resnet'
  assert (tmp_path / 'teacher.npz.digits/images.csv').is_file()
  assert 'small_resnet' not in capsys.readouterr().err


def test_eval_gives_a_number_for_a_run(tmp_path, digits):
  network = save_run(tmp_path / 'run', digits)
  out = tmp_path / 'out'
  model = f'--model={tmp_path / "run"}'
  assert evaluate(model, f'--workdir={out}') == 0
  sha256 = checkpoint.tree_sha256(network.variables)
  assert read_json(out / 'results.json')['sha256'] == sha256
  assert not (tmp_path / 'run/results.json').exists()


@pytest.mark.parametrize(
  'words,message',
  [
    (['--model=none.npz'], "checkpoint 'none.npz' does not exist"),
    (['--model=FILE', '--arch=resnet18'], 'what fits it is small_resnet'),
    (['--model=RUN', '--arch=resnet18'], '--arch is for files of weights'),
    (['--model=FILE', '--workdir=RUN'], 'is that of a run'),
    (['--model=FILE', '--data=nowhere'], 'nowhere'),
    (['--model=zoo:none'], 'zoo:none is unknown'),
    (['--model=zoo:Sehwag2021Proxy', '--zoo=RUN'], 'download https://drive'),
    (['--model=FILE', '--threat=linf'], "eval.threat='linf' is unknown"),
  ],
)
def test_eval_refuses(file, tmp_path, digits, capsys, words, message):
  save_run(tmp_path / 'run', digits)
  words = [
    w.replace('FILE', file).replace('RUN', str(tmp_path / 'run')) for w in words
  ]
  given = [w.partition('=')[0] for w in words]
  defaults = [
    w
    for w in ('--data=digits', '--threat=linf_8_255')
    if w.partition('=')[0] not in given
  ]
  assert entry.main(['jax-robust-kd', 'eval', *words, *defaults]) == 2
  assert message in ' '.join(capsys.readouterr().err.split())


def test_eval_asks_for_what_is_missing(capsys):
  assert entry.main(['jax-robust-kd', 'eval', '--model=a.npz']) == 2
  assert 'give --data NAME' in capsys.readouterr().err
  assert entry.main(['jax-robust-kd', 'eval', '--config=rslad:digits']) == 2
  assert 'give --workdir FOLDER' in capsys.readouterr().err


def test_a_file_of_pytorch_without_pytorch(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'a.pt').write_bytes(b'PK')
  assert evaluate(f'--model={tmp_path / "a.pt"}') == 2
  assert 'pip install torch' in ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('kind', ['pt', 'pth', 'ckpt', 'tar', 'safetensors'])
def test_files_of_other_programs_are_teachers(tmp_path, digits, capsys, kind):
  path = str(tmp_path / f'teacher.{kind}')
  state = {k: v.astype(np.float16) for k, v in state_of().items()}
  if kind == 'safetensors':
    pytest.importorskip('safetensors.numpy').save_file(state, path)
  else:
    torch = pytest.importorskip('torch')
    state = {f'module.{k}': torch.from_numpy(v) for k, v in state.items()}
    torch.save({'epoch': 3, 'state_dict': state}, path)
  teacher = networks.load_teacher(config(checkpoint=path), 'robust', digits)
  model = models.build('small_resnet', 10, FIELDS)
  expected = import_state(state_of(), model)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    teacher.variables,
    expected,
  )
  said = ' '.join(capsys.readouterr().out.split())
  assert 'in float16: widened to float32' in said


class Code:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, 'w')


def test_a_pickle_that_wants_to_run_code_does_not(tmp_path, capsys):
  torch = pytest.importorskip('torch')
  path, trace = str(tmp_path / 'bad.pt'), tmp_path / 'it_ran'
  torch.save({'state_dict': Code(str(trace))}, path)
  assert evaluate(f'--model={path}') == 2
  assert 'would run code' in ' '.join(capsys.readouterr().err.split())
  assert not trace.exists()
