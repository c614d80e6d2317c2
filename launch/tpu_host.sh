#!/usr/bin/env bash
# What launch/tpu.sh does on each host: setup [SHARE], start ..., code, stop.
set -euo pipefail
cd "$(dirname "$0")/.."

running() { # by name too: after a reboot the number may be another process's
  grep -qs tpu_host "/proc/$(cat ~/run.pid 2>/dev/null)/cmdline"
}

# Runs the program, again when it was preempted (75) or killed by a signal.
keep_running() {
  local try code child stopped=''
  for ((try = 0; try <= ${RETRIES:-20}; try++)); do
    [[ ! $stopped ]] || break
    set -m # a process group of its own
    .venv/bin/python -m jax_robust_kd.main "$@" &
    set +m
    child=$!
    trap 'stopped=1; kill -TERM "$child" || :' TERM
    while true; do
      code=0
      wait "$child" || code=$?
      kill -0 "$child" 2>/dev/null || break # else a signal ended the waiting
    done
    kill -KILL -- "-$child" 2>/dev/null || : # what it left behind holds the TPU
    if [[ $stopped ]] || ((code != 75 && code <= 128)); then break; fi
    sleep "${PAUSE:-30}" # the other hosts must have noticed
  done
  echo "$code" >~/run.code
}

case $1 in
  setup)
    if running; then
      echo 'a run is going on here; first: launch/tpu.sh stop' >&2
      exit 1
    fi
    rm -rf ~/code
    mv ~/new ~/code
    cd ~/code
    if [[ ${2:-} ]] && ! mountpoint -q /mnt/runs; then
      sudo apt-get -qq install -y nfs-common
      sudo mkdir -p /mnt/runs
      sudo mount -t nfs "$2" /mnt/runs
      sudo chmod go+rwx /mnt/runs
    fi
    # The image's Python may be too old; uv brings one.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv -r requirements.lock
    python3 -m uv pip install --quiet --python .venv -c requirements.lock 'jax[tpu]'
    python3 -m uv pip install --quiet --python .venv --no-deps -e .
    ;;
  start)
    if running; then echo 'already running'; exit; fi
    rm -f ~/run.code
    shift
    nohup launch/tpu_host.sh keep_running "$@" >>~/run.log 2>&1 </dev/null &
    echo $! >~/run.pid
    ;;
  keep_running) "$@" ;;
  code) if running; then echo code=running; else echo "code=$(cat ~/run.code 2>/dev/null || echo none)"; fi ;;
  stop) if running; then kill -TERM "$(<~/run.pid)"; fi ;;
esac
