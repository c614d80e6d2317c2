#!/usr/bin/env -S python3 -I -S
"""Stands for the program whose name it is called by (see README.md).

In the folder STAND_IN it appends each call to calls.jsonl, keeps what exists
in world.json, and reads codes.json (exit codes by command) and states (what
the next lists of TPU slices answer). hosts/ has a home folder for each host.
"""

import contextlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

sys.path.insert(0, str(Path(__file__).resolve().parent))
from known_flags import COMMANDS, QR, Known

HERE = Path(os.environ['STAND_IN'])


def split(argv: list[str]) -> tuple[str, Known, list[str]]:
  """Returns the command's name, what is known of it, and its arguments."""
  for length in range(len(argv), 0, -1):
    name = ' '.join(argv[:length])
    if name in COMMANDS:
      return name, COMMANDS[name], argv[length:]
  sys.exit(f'unknown command: {" ".join(argv)}')


def parse(name: str, known: Known, argv: list[str]) -> tuple[dict, list[str]]:
  """Returns flags and words; exits with an error on what is not known."""
  takes = {flag.rstrip('='): flag.endswith('=') for flag in known.flags.split()}
  flags, words = {}, []
  rest = list(argv)
  while rest:
    word = rest.pop(0)
    if not word.startswith('--'):
      words.append(word)
      if known.words is None:
        words, rest = [*words, *rest], []
      continue
    flag, equals, value = word.partition('=')
    if flag not in takes:
      sys.exit(f'{name}: unknown flag {flag}')
    if bool(equals) and not takes[flag]:
      sys.exit(f'{name}: {flag} takes no value')
    if takes[flag] and not equals:
      if not rest:
        sys.exit(f'{name}: {flag} needs a value')
      value = rest.pop(0)
    flags.setdefault(flag, []).append(value)
  if known.words is not None and len(words) != known.words:
    sys.exit(f'{name}: {known.words} words are wanted, not {words}')
  return {key: value[-1] if len(value) == 1 else value
          for key, value in flags.items()}, words  # fmt: skip


def called(name: str, flags: dict, words: list[str]) -> str:
  """The name of what a command makes or deletes."""
  for flag in ('--workload', '--name', '--job-name', '--tag'):
    if flag in flags:
      return flags[flag]
  if name == 'kubectl create':
    lines = Path(flags['--filename']).read_text().splitlines()
    return next(x for x in lines if x.startswith('  name: ')).split()[1]
  if words and name != 'sbatch':
    return words[0]
  return flags.get('--cluster', 'job')


def change(name: str, known: Known, flags: dict, words: list[str]) -> int:
  """Makes or deletes a thing; returns the exit code."""
  path = HERE / 'world.json'
  world = json.loads(path.read_text()) if path.exists() else []
  thing = f'{known.makes or known.ends} {called(name, flags, words)}'
  if name == 'scancel':
    thing = next((x for x in world if x.startswith('job ')), thing)
  if known.ends and thing not in world:
    print(f'NOT_FOUND: {thing}', file=sys.stderr)
    return 0 if '--ignore-not-found' in flags else 1
  if known.makes == 'tpu' and thing in world:
    sys.exit(f'ALREADY_EXISTS: {thing}')
  world = [x for x in world if x != thing]
  if known.makes:
    world.append(thing)
  if name == 'sky jobs launch':
    bucket = next(x for x in flags['--env'] if x.startswith('BUCKET='))
    world.append('bucket ' + bucket.removeprefix('BUCKET='))
  path.write_text(json.dumps(sorted(set(world))))
  if known.ends == 'tpu':
    for home in hosts({}):
      wipe(home)
  return 0


def wipe(home: Path) -> None:
  """A host that is given back: its processes and files are gone."""
  if (home / 'run.pid').exists():
    with contextlib.suppress(ProcessLookupError):
      session = os.getsid(int((home / 'run.pid').read_text()))
      subprocess.run(['pkill', '-KILL', '-s', str(session)])
  shutil.rmtree(home)
  home.mkdir()


def hosts(flags: dict) -> list[Path]:
  """The home folders that --worker means."""
  homes = sorted((HERE / 'hosts').glob('*'))
  return homes if flags.get('--worker', 'all') == 'all' else homes[:1]


def on_hosts(name: str, flags: dict, words: list[str]) -> int:
  """Copies a file to the hosts, or runs a command there."""
  if name.endswith('scp'):
    for home in hosts(flags):
      shutil.copy(words[0], home / words[1].partition(':')[2])
    return 0
  path = f'{HERE}/host_bin:/usr/bin:/bin'
  codes = [
    subprocess.run(
      ['bash', '-c', flags['--command']],
      cwd=home,
      env=dict(os.environ, HOME=str(home), PATH=path),
      start_new_session=True,  # as sshd does
    ).returncode
    for home in hosts(flags)
  ]
  return max(codes)


def state() -> str:
  """What a list of slices answers: the next line of states, or ACTIVE."""
  path = HERE / 'world.json'
  if not path.exists() or 'tpu ' not in path.read_text():
    return ''
  script = HERE / 'states'
  lines = script.read_text().split() if script.exists() else []
  script.write_text('\n'.join(lines[1:]))
  return lines[0] if lines else 'ACTIVE'


def answer(name: str, flags: dict, words: list[str]) -> int:
  """Does what a command does; returns the exit code."""
  codes = HERE / 'codes.json'
  code = json.loads(codes.read_text()).get(name, 0) if codes.exists() else 0
  if name == QR + 'list':
    print(state())
  elif name == 'gcloud filestore instances describe':
    print('10.0.0.2')
  elif name == 'squeue' and '--noheader' in flags:
    print(12345 if 'job ' in (HERE / 'world.json').read_text() else '')
  elif name in (QR + 'ssh', QR + 'scp'):
    return on_hosts(name, flags, words)
  elif name == 'docker build' and words == ['-']:
    (HERE / 'context.tar.gz').write_bytes(sys.stdin.buffer.read())
  elif name == 'kubectl create':
    shutil.copy(flags['--filename'], HERE / 'jobset.yaml')
  elif name == 'sky jobs launch':
    shutil.copytree(flags['--workdir'], HERE / 'sky', dirs_exist_ok=True)
  return code


def main() -> int:
  program = Path(sys.argv[0]).name
  name, known, argv = split([program, *sys.argv[1:]])
  flags, words = parse(name, known, argv)
  with (HERE / 'calls.jsonl').open('a') as file:
    file.write(json.dumps([program, *sys.argv[1:]]) + '\n')
  if known.makes or known.ends:
    code = change(name, known, flags, words)
    if code:
      return code
  return answer(name, flags, words)


if __name__ == '__main__':
  sys.exit(main())
