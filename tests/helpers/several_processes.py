"""Runs of one program in several processes, and what they leave."""

import os
from pathlib import Path
import socket
import subprocess
import sys
import time

from helpers.runs import ROOT, TINY
from jax_robust_kd.runtime import checkpoint
from jax_robust_kd.runtime.files import read_lines


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def start(command: list, devices: int, **options) -> subprocess.Popen:
  environment = {
    **os.environ,
    'PYTHONPATH': f'{ROOT}:{ROOT}/tests',
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }
  return subprocess.Popen(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def finish(processes: list, seconds: float = 300) -> list[tuple]:
  """Waits for all; returns (exit code, output, errors) of each."""
  end = time.monotonic() + seconds
  try:
    said = [p.communicate(timeout=end - time.monotonic()) for p in processes]
  finally:
    for process in processes:
      process.kill()
  return [(p.returncode, *s) for p, s in zip(processes, said, strict=True)]


def launch(
  shape, argv: list, program: str = 'jax_robust_kd.main'
) -> list[subprocess.Popen]:
  """Starts a program in as many processes."""
  number, devices = shape
  port = free_port()
  together = ['--distributed', f'--coordinator=localhost:{port}']
  return [
    start(
      ['-m', *program.split(), *argv, *together,
       f'--num_processes={number}', f'--process_id={i}', '--start_timeout=120'],
      devices,
    )
    for i in range(number)
  ]  # fmt: skip


def arguments(workdir: Path, *more: str) -> list[str]:
  config = ROOT / 'configs/pgd_at.py:digits'
  return [f'--config={config}', *TINY, *more, f'--workdir={workdir}']


def log_of(workdir: Path) -> bytes:
  return (workdir / 'metrics.jsonl').read_bytes()


def weights_of(workdir: Path) -> dict:
  found = checkpoint.read(workdir, 'last')
  assert found is not None
  return checkpoint.digests(found[0])


def wait_for_step(workdir: Path, step: int) -> None:
  end = time.monotonic() + 200
  log = workdir / 'metrics.jsonl'
  while not any(r['step'] >= step for r in read_lines(log)):
    assert time.monotonic() < end
    time.sleep(0.01)
