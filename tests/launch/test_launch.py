"""launch/: real scripts, real local processes, stand-ins for clouds.

What the stand-ins cannot tell is whether a cloud answers as they do.
"""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

from helpers.launch_tools import (
  LAUNCH,
  PROGRAMS,
  STAND_INS,
  alive,
  arguments,
  calls,
  exists,
  git,
  launch,
  make_place,
  make_repository,
  plan,
  program_calls,
)
import pytest
import yaml

SHELL = sorted([*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'])
LOCAL = 'local.sh --processes 3 --devices 2'
# A walk from nothing to nothing; `run` twice: the second time it goes on.
WALKS = {
  'share.sh': ['create', 'address', 'delete'],
  'tpu.sh': ['create', 'setup', 'run', 'run', 'watch', 'stop', 'delete'],
  'slurm.sh': ['run', 'run', 'watch', 'delete'],
  'image.sh': ['build', 'push', 'run', 'run', 'delete'],
  'xpk.sh': ['create', 'run', 'run', 'watch', 'stop', 'delete'],
  'jobset.sh': ['run', 'run', 'watch', 'delete'],
  'sky.sh': ['run', 'run', 'watch', 'delete', 'delete_bucket'],
}
SHIPPING = ['tpu.sh setup', 'slurm.sh run', 'image.sh build', 'sky.sh run']


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
  folder = tmp_path_factory.mktemp('launch') / 'repo'
  make_repository(folder)
  return folder


@pytest.fixture
def place(tmp_path, repository):
  place = make_place(tmp_path, repository)
  yield place
  if (place.folder / 'plan' / 'pids').exists():
    for pid in alive(place):
      subprocess.run(['kill', '-KILL', str(pid)])


def arguments_for(place, script: str) -> list[str]:
  """What follows a launcher's command."""
  if script.startswith('share'):
    return []
  words = ['--', *arguments(place)]
  return [*words[:-1], '/runs/one'] if script.startswith('sky') else words


def walk(place, script: str, steps: list[str]) -> None:
  for step in steps:
    launch(place, f'{script} {step}', *arguments_for(place, script))


# Files.


@pytest.mark.parametrize('path', SHELL, ids=lambda path: path.name)
def test_shell(path):
  subprocess.run(['bash', '-n', path], check=True)
  text = path.read_text()
  assert len(text.splitlines()) <= 90
  if path.name != 'common.sh':
    assert 'set -euo pipefail' in text


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='no shellcheck')
def test_shellcheck():
  subprocess.run(
    ['shellcheck', *SHELL, LAUNCH / 'env.example', *STAND_INS.glob('*.sh')],
    check=True,
  )


@pytest.mark.parametrize('name', ['sky.yaml', 'jobset.yaml'])
def test_yaml_parses(name):
  assert isinstance(yaml.safe_load((LAUNCH / name).read_text()), dict)


def test_image_copies_what_exists():
  text = (LAUNCH / 'Dockerfile').read_text()
  assert re.search(r'^FROM python:3\.1[123]-', text, re.MULTILINE)
  for source in re.findall(r'^COPY (\S+)', text, re.MULTILINE):
    assert (LAUNCH.parent / source).exists()
  assert 'requirements.lock' in text


def test_stand_ins_refuse_what_is_not_documented(place):
  for line in ('kubectl get jobset a --colour', 'kubectl fly', 'docker push'):
    program = place.folder / 'bin' / line.split()[0]
    done = subprocess.run(
      [program, *line.split()[1:]], env=place.env, capture_output=True
    )
    assert done.returncode == 1, line
  assert not calls(place)


# All launchers alike.


@pytest.mark.parametrize('script', WALKS)
def test_walk(place, script):
  runs = []
  for step in WALKS[script]:
    line, words = f'{script} {step}', arguments_for(place, script)
    before, world = calls(place), exists(place)
    printed = launch(place, f'{line} --dry_run', *words).splitlines()
    assert calls(place) == before and exists(place) == world
    launch(place, line, *words)
    done = plain(calls(place)[len(before) :])
    assert plain(commands(printed)) == done, 'a dry run prints what runs'
    if step == 'run':
      runs.append(done)
  assert world and not exists(place), 'what was created is deleted'
  assert len(runs) in (0, 2) and runs[:1] == runs[1:], 'run again: the same'


def commands(printed: list[str]) -> list[list[str]]:
  """The commands of stand-ins among the lines of a dry run."""
  lines = [shlex.split(x) for x in printed if x.split()[0] in PROGRAMS]
  # It cannot know the number of the job.
  number = {'JobId=JOB': 'JobId=12345', 'JOB': '12345'}
  return [[number.get(word, word) for word in line] for line in lines]


def plain(found: list[list[str]]) -> list[list[str]]:
  """Takes the names of temporary files out."""
  name = re.compile(re.escape(tempfile.gettempdir()) + r'/tmp\.\w+')
  return [[name.sub('TEMPORARY', word) for word in line] for line in found]


@pytest.mark.parametrize('script', sorted(set(WALKS) - {'share.sh'}))
def test_a_relative_workdir_is_refused(place, script):
  words = ['--', '--config', 'c.py', '--workdir', 'runs/one']
  assert 'whole path' in launch(place, f'{script} run', *words, code=2)
  assert 'give --' in launch(place, f'{script} run', code=2)
  assert not calls(place)


@pytest.mark.parametrize('line', SHIPPING)
def test_a_dirty_tree_is_refused(place, line):
  words = arguments_for(place, line)
  (place.repository / 'launch' / 'env').write_text('# settings\n')
  if line.startswith('tpu'):
    launch(place, 'tpu.sh create')
  before = len(calls(place))
  (place.repository / 'new.py').write_text('x = 1\n')
  for dry in ([], ['--dry_run']):
    assert 'not committed' in launch(place, line, *dry, *words, code=2)
  (place.repository / 'new.py').unlink()
  (place.repository / 'requirements.lock').write_text('jax==2\n')
  assert '--dirty' in launch(place, line, *words, code=2)
  assert len(calls(place)) == before
  launch(place, line, '--dirty', *words)
  assert 'jax==2' in _shipped(place, line, 'requirements.lock')


@pytest.mark.parametrize('line', SHIPPING)
def test_what_is_shipped_is_what_is_committed(place, line):
  (place.repository / 'runs').mkdir()
  (place.repository / 'runs' / 'ignored').write_text('')
  if line.startswith('tpu'):
    launch(place, 'tpu.sh create')
  launch(place, line, *arguments_for(place, line))
  committed = git(place.repository, 'ls-tree', '-r', '--name-only', 'HEAD')
  assert _shipped(place, line) == set(committed.split())


def _shipped(place, line: str, name: str = '') -> set[str] | str:
  """Names of the files that arrived, or the text of one."""
  if line.startswith('image'):
    with tarfile.open(place.folder / 'context.tar.gz') as tar:
      if name:
        return tar.extractfile(name).read().decode()
      return {x.name for x in tar if x.isfile()}
  folder = {
    'tpu': place.folder / 'hosts' / '1' / 'code',
    'slu': next((place.repository / 'runs' / 'code').glob('*'), None),
    'sky': place.folder / 'sky',
  }[line[:3]]
  if name:
    return (folder / name).read_text()
  return {
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file() and '.venv' not in path.parts
  }


# TPU slices.


def test_share_address(place):
  launch(place, 'share.sh create')
  assert launch(place, 'share.sh address').strip() == '10.0.0.2:/runs'


@pytest.mark.parametrize('slices', ['1', '3'])
@pytest.mark.parametrize('spot', ['1', ''])
def test_slice_as_asked_for(place, slices, spot):
  launch(place, 'tpu.sh create', SLICES=slices, SPOT=spot)
  create = calls(place)[0]
  assert ('--spot' in create) == bool(spot)
  assert ('--node-id=robust' in create) == (slices == '1')
  assert ('--node-count=3' in create) == (slices == '3')
  assert ('--node-prefix=robust' in create) == (slices == '3')


def test_create_waits_and_says_when_it_is_hopeless(place):
  (place.folder / 'states').write_text('WAITING_FOR_RESOURCES ACTIVE')
  assert 'WAITING' in launch(place, 'tpu.sh create')
  launch(place, 'tpu.sh delete')
  (place.folder / 'states').write_text('FAILED')
  assert 'delete, then create' in launch(place, 'tpu.sh create', code=2)


def until(condition, seconds: float = 60) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'it did not happen'
    time.sleep(0.02)


def start_on_hosts(place) -> None:
  walk(place, 'tpu.sh', ['create', 'setup', 'run'])


def host_codes(place) -> list[str]:
  return re.findall(r'code=(\w+)', launch(place, 'tpu.sh codes'))


def test_hosts_run_the_program(place):
  plan(place, 0, 'wait')
  plan(place, 1, 'wait')
  start_on_hosts(place)
  until(lambda: all(program_calls(place, i) for i in (0, 1)))
  for process in (0, 1):
    [call] = program_calls(place, process)
    words = call[2].replace('a b', 'a_b').split()
    assert words[:2] == ['-m', 'jax_robust_kd.main']
    assert words[-2:] == [arguments(place)[-1], '--distributed']
    log = (place.folder / 'hosts' / str(process) / 'host.log').read_text()
    assert 'sudo mount -t nfs 10.0.0.2:/runs /mnt/runs' in log
    assert '-r requirements.lock' in log and 'jax[tpu]' in log
  assert host_codes(place) == ['running', 'running']
  assert 'already running' in launch(
    place, 'tpu.sh run', '--', *arguments(place)
  )
  assert 'going on' in launch(place, 'tpu.sh setup', code=1)
  launch(place, 'tpu.sh stop')
  until(lambda: host_codes(place) == ['75', '75'])
  assert len(program_calls(place, 0)) == 1, 'stopped, yet started again'


def test_hosts_start_again_after_75_and_signals_only(place):
  plan(place, 0, '75', 'kill', '1', '0')
  plan(place, 1, *['75'] * 30)
  start_on_hosts(place)
  until(lambda: host_codes(place) == ['1', '75'])
  assert len(program_calls(place, 0)) == 3
  assert len(program_calls(place, 1)) == 21


def test_keep_makes_a_preempted_slice_again(place):
  # Twice it runs until the slice is taken away, then it ends.
  plan(place, 0, 'wait', 'wait', '0')
  plan(place, 1, 'wait', 'wait', '0')
  taken = 'ACTIVE ACTIVE SUSPENDED SUSPENDING SUSPENDED '
  (place.folder / 'states').write_text(taken * 2)
  launch(place, 'tpu_keep.sh --delete', '--', *arguments(place))
  made = [call[4] for call in calls(place) if call[3] == 'queued-resources']
  assert made.count('create') == 3 and made.count('delete') == 3
  assert exists(place) == []
  first, *others = [x for x in calls(place) if 'tpu_host.sh start' in x[-4]]
  assert others == [first, first]


@pytest.mark.parametrize('codes,code', [('10', 1), ('02', 2), ('77', 75)])
def test_keep_ends_with_the_code_of_the_run(place, codes, code):
  for process in (0, 1):
    step = codes[process].replace('7', '75')
    plan(place, process, *[step] * 9)
  launch(place, 'tpu_keep.sh', '--', *arguments(place), code=code, RETRIES='1')
  assert exists(place) == ['tpu robust']
  starts = len(program_calls(place, 0))
  assert starts == (4 if code == 75 else 1)  # two times two


def test_keep_dry_run(place):
  lines = launch(
    place, 'tpu_keep.sh --delete --dry_run', '--', *arguments(place)
  )
  assert not calls(place)
  for step in ('create', 'scp', 'tpu_host.sh', 'list', 'delete'):
    assert step in lines


# SLURM.


def sbatch(place, code: int, **env: str) -> list[list[str]]:
  codes = place.folder / 'codes.json'
  codes.write_text(f'{{"srun": {code}}}')
  launch(
    place, 'slurm.sbatch', *arguments(place), code=code, SLURM_JOB_ID='7', **env
  )
  return calls(place)


@pytest.mark.parametrize('code', [75, 137, 143])
def test_slurm_requeues(place, code):
  srun, requeue = sbatch(place, code, PYTHON='/p', SLURM_CPUS_PER_TASK='4')
  at = srun.index('/p')
  assert srun[at:] == ['/p', '-m', 'jax_robust_kd.main', *arguments(place), '--distributed']  # fmt: skip  # noqa: E501
  assert '--cpus-per-task=4' in srun[:at]
  assert requeue == ['scontrol', 'requeue', '7']


@pytest.mark.parametrize('code', [0, 1, 2, 3])
def test_slurm_does_not_requeue_what_is_final(place, code):
  assert [call[0] for call in sbatch(place, code)] == ['srun']


def test_slurm_requeues_boundedly(place):
  assert len(sbatch(place, 75, SLURM_RESTART_COUNT='20')) == 1


def test_slurm_shell_outlives_sigterm(place):
  srun = place.folder / 'bin' / 'srun'
  srun.unlink()
  srun.write_text(
    '#!/bin/bash\ntouch "$STAND_IN/started"\nsleep 0.5\nexit 75\n'
  )
  srun.chmod(0o755)
  shell = subprocess.Popen(
    ['launch/slurm.sbatch', *arguments(place)],
    cwd=place.repository,
    env=dict(place.env, SLURM_JOB_ID='7'),
  )
  until((place.folder / 'started').exists)
  shell.send_signal(signal.SIGTERM)
  assert shell.wait(60) == 75
  assert calls(place) == [['scontrol', 'requeue', '7']]


def test_sbatch_directives_are_known(place):
  text = (LAUNCH / 'slurm.sbatch').read_text()
  flags = re.findall(r'^#SBATCH (\S+)', text, re.MULTILINE)
  assert '--requeue' in flags and '--signal=TERM@300' in flags
  subprocess.run(
    [place.folder / 'bin' / 'sbatch', *flags, 'file'],
    env=place.env,
    check=True,
  )
  launch(place, 'slurm.sbatch --dry_run', *arguments(place))
  assert [call[0] for call in calls(place)] == ['sbatch']


# Kubernetes and SkyPilot.


def shell_words(command: list[str], place, **env: str) -> list[str]:
  """Runs a command whose `python` prints its arguments, one per line."""
  python = place.folder / 'bin' / 'python'
  python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
  python.chmod(0o755)
  return subprocess.run(
    command,
    cwd=place.repository,
    env=dict(place.env, **env),
    check=True,
    capture_output=True,
    text=True,
  ).stdout.splitlines()


def test_xpk_command(place):
  walk(place, 'xpk.sh', ['create', 'run'])
  [create] = [x for x in calls(place) if x[1:3] == ['workload', 'create']]
  assert '--restart-on-exit-codes=75' in create
  [command] = [x for x in create if x.startswith('--command=')]
  words = shlex.split(command.removeprefix('--command='))
  assert words == ['python', '-m', 'jax_robust_kd.main', *arguments(place), '--distributed']  # fmt: skip  # noqa: E501


def test_jobset(place):
  odd = ['--config.data.name=a "b" & \\c', "--config.eval.suite=('x',)"]
  launch(
    place, 'jobset.sh run', '--', *arguments(place), *odd, NODES='4', GPUS='2'
  )
  spec = yaml.safe_load((place.folder / 'jobset.yaml').read_text())['spec']
  [hosts] = spec['replicatedJobs']
  job = hosts['template']['spec']
  assert job['completions'] == job['parallelism'] == 4
  [rule] = job['podFailurePolicy']['rules']
  assert rule['onExitCodes']['values'] == [1, 2, 3]
  [main] = job['template']['spec']['containers']
  assert main['resources']['limits'] == {'nvidia.com/gpu': 2}
  words = shell_words(
    [*main['command'], *main['args']], place, JOB_COMPLETION_INDEX='3'
  )
  assert words == [
    *['-m', 'jax_robust_kd.main', *arguments(place), *odd, '--distributed'],
    *['--coordinator', 'robust-hosts-0-0.robust:8476'],
    *['--num_processes', '4', '--process_id', '3'],
  ]
  assert 'NFS' in launch(place, 'jobset.sh run', '--', *arguments(place), code=2, SHARE='')  # fmt: skip  # noqa: E501


@pytest.mark.parametrize('nodes', ['1', '2'])
def test_sky(place, nodes):
  words = arguments_for(place, 'sky.sh')
  launch(place, 'sky.sh run', *words)
  [call] = calls(place)
  given = [x for x in call if x.startswith('--env=ARGUMENTS=')]
  task = yaml.safe_load((place.folder / 'sky/launch/sky.yaml').read_text())
  recovery = task['resources']['job_recovery']
  assert 75 in recovery['recover_on_exit_codes']
  assert not {1, 2, 3, 137} & set(recovery['recover_on_exit_codes'])
  run = task['run'].replace('.venv/bin/python', 'python')
  found = shell_words(
    ['bash', '-c', run],
    place,
    ARGUMENTS=given[0].removeprefix('--env=ARGUMENTS='),
    SKYPILOT_NUM_NODES=nodes,
    SKYPILOT_NODE_RANK='1',
    SKYPILOT_NODE_IPS='10.0.0.1\n10.0.0.9',
  )
  many = [] if nodes == '1' else [
    *['--distributed', '--coordinator', '10.0.0.1:8476'],
    *['--num_processes', '2', '--process_id', '1'],
  ]  # fmt: skip
  assert found == ['-m', 'jax_robust_kd.main', *words[1:], *many]


# Processes on this machine, for real.


# A shell cannot trap what is ignored, as Ctrl-C is where tests run unattended.
HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def local(place, code: int, *flags: str, **env: str) -> str:
  words = [*flags, '--', '--config', 'c.py', f'--workdir={place.folder}/w']
  env.setdefault('PYTHON', str(STAND_INS / 'program.sh'))
  return launch(place, LOCAL, *words, code=code, **env)


def ports(place) -> list[set[str]]:
  """The coordinators that the processes were told, start after start."""
  found = [
    [re.search(r'--coordinator (\S+)', call[2])[1] for call in calls]
    for calls in (program_calls(place, i) for i in range(3))
  ]
  return [set(each) for each in zip(*found, strict=True)]


def test_local_starts_all_processes(place):
  output = local(place, 0)
  for process in range(3):
    [[platform, devices, words]] = program_calls(place, process)
    assert (platform, devices) == ('cpu', '2')
    assert words.endswith(f'--num_processes 3 --process_id {process}')
    assert words.startswith('-m jax_robust_kd.main --config c.py --workdir=')
    assert ' --distributed --coordinator 127.0.0.1:' in words
  assert [len(each) for each in ports(place)] == [1]
  assert 'process 0 speaks' in output and 'process 1' not in output
  for process in (1, 2):
    log = place.folder / 'w' / f'process-{process}.log'
    assert log.read_text() == f'process {process} speaks\n'


def test_local_starts_all_again(place):
  for process in range(3):
    plan(place, process, '75', '75', '0')
  plan(place, 1, 'kill', '75', '0')
  local(place, 0)
  assert [len(program_calls(place, i)) for i in range(3)] == [3, 3, 3]
  assert [len(each) for each in ports(place)] == [1, 1, 1]


def test_local_restarts_boundedly(place):
  for process in range(3):
    plan(place, process, *['75'] * 9)
  local(place, 75, '--retries', '2')
  assert len(program_calls(place, 0)) == 3


@pytest.mark.parametrize('code', [1, 2, 3])
def test_local_does_not_restart_what_is_final(place, code):
  plan(place, 0, '75')
  plan(place, 1, str(code))
  plan(place, 2, '75')
  assert f'process 1 ended with {code}' in local(place, code)
  assert len(program_calls(place, 1)) == 1


def test_local_ends_the_others_when_one_dies(place):
  plan(place, 0, 'deaf')
  plan(place, 1, 'kill')
  plan(place, 2, 'wait')
  start = time.monotonic()
  local(place, 137, '--retries', '0', '--grace', '1')
  assert time.monotonic() - start < 30  # the deaf one would go on for ever
  until(lambda: alive(place) == [])


def test_local_leaves_no_worker_behind(place):
  plan(place, 2, 'worker')
  local(place, 0)
  until(lambda: alive(place) == [])


@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_local_passes_sigterm_on(place, kind):
  for process in range(3):
    plan(place, process, 'wait')
  words = ['--', '--workdir', place.folder / 'w']
  launcher = subprocess.Popen(
    [sys.executable, '-c', HEARING, *shlex.split(f'launch/{LOCAL}'), *words],
    cwd=place.repository,
    env=dict(place.env, PYTHON=str(STAND_INS / 'program.sh')),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  logs = [place.folder / 'w' / f'process-{i}.log' for i in (1, 2)]
  until(lambda: all(x.exists() and 'speaks' in x.read_text() for x in logs))
  until(lambda: len(program_calls(place, 0)) == 1)
  launcher.send_signal(kind)
  assert launcher.wait(60) == 75, 'asked to stop: no restart'
  assert all('told' in log.read_text() for log in logs)
  until(lambda: alive(place) == [])


def test_local_dry_run(place):
  lines = local(place, 0, '--dry_run').splitlines()
  assert len(lines) == 3 and not program_calls(place, 0)
  for process, line in enumerate(lines):
    words = shlex.split(line)
    assert 'JAX_NUM_CPU_DEVICES=2' in words
    assert words[-2:] == ['--process_id', str(process)]
  assert not (place.folder / 'w').exists()


@pytest.mark.parametrize('words', ['', '--', '--processes x -- --workdir w', '--nodes 2 -- --workdir w'])  # fmt: skip  # noqa: E501
def test_local_mistakes(place, words):
  assert 'local.sh: ' in launch(place, f'local.sh {words}', code=2)
