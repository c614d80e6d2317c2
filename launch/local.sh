#!/usr/bin/env bash
# Tries a pod on one machine: N processes with M CPU devices each.
#   launch/local.sh [--processes N] [--devices M] [--retries R] [--grace SECONDS]
#     [--dry_run] -- --config C --workdir W ...
# Process 0 writes here, process I to W/process-I.log. All are started again, R
# times at most, when the run was preempted (75) or a process was killed. When
# one fails, the others have SECONDS to end by themselves. SIGTERM and Ctrl-C:
# all save a checkpoint and end. PYTHON picks the interpreter.
set -euo pipefail
die() { echo "local.sh: $*" >&2; exit 2; }

processes=2 devices=1 retries=3 grace=60 dry_run='' workdir='' before=''
while [[ ${1:-} != -- ]]; do
  case ${1:-} in
    --dry_run) dry_run=1; shift; continue ;;
    --processes | --devices | --retries | --grace)
      [[ ${2:-} =~ ^[0-9]+$ ]] || die "$1 ${2:-}: give a number"
      declare "${1#--}=$2"; shift 2 ;;
    *) die "${1:-no arguments}: write [flags] -- --config FILE --workdir FOLDER" ;;
  esac
done
shift
for word in "$@"; do
  if [[ $before == --workdir ]]; then workdir=$word; fi
  case $word in --workdir=*) workdir=${word#*=} ;; esac
  before=$word
done
[[ $workdir ]] || die 'give -- --config FILE --workdir FOLDER'
python=$(dirname "$0")/../.venv/bin/python
[[ -x $python ]] || python=python3

pids=() stopping=''
restartable() { (($1 == 75 || $1 > 128)); }
signal() { # SIGNAL PREFIX; with the prefix - also the workers of each process
  for pid in ${pids[@]+"${pids[@]}"}; do
    [[ ! $pid ]] || kill "-$1" -- "$2$pid" 2>/dev/null || :
  done
}
trap 'signal KILL -' EXIT
trap 'stopping=1; signal TERM ""' TERM INT

start() { # the command of process $1, at port $2
  command=(env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices" "${PYTHON:-$python}"
    -m jax_robust_kd.main "${@:3}" --distributed --coordinator "127.0.0.1:$2"
    --num_processes "$processes" --process_id "$1")
  if [[ $dry_run ]]; then printf '%q ' "${command[@]}"; echo; return; fi
  set -m # a process group of its own
  if (($1 == 0)); then "${command[@]}" </dev/null & else
    mkdir -p "$workdir"
    "${command[@]}" </dev/null >>"$workdir/process-$1.log" 2>&1 &
  fi
  set +m
  pids+=("$!")
}

collect() { # process $1, if it has ended
  [[ ${pids[$1]} ]] && ! kill -0 "${pids[$1]}" 2>/dev/null || return 0
  ended=0
  wait "${pids[$1]}" || ended=$?
  kill -KILL -- "-${pids[$1]}" 2>/dev/null || : # workers that it left behind
  pids[$1]='' left=$((left - 1))
  if ((ended)); then
    echo "local.sh: process $1 ended with $ended" >&2
    # The first failure counts, but before it what no restart can mend: 1, 2, 3.
    if ((code == 0)) || { restartable "$code" && ! restartable "$ended"; }; then code=$ended; fi
  fi
}

for ((try = 0; ; try++)); do
  # Below the ports that the system gives to outgoing connections.
  while port=$((20000 + RANDOM % 12000)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  pids=() code=0 left=$processes deadline=''
  for ((i = 0; i < processes; i++)); do start "$i" "$port" "$@"; done
  if [[ $dry_run ]]; then exit; fi
  if [[ $stopping ]]; then signal TERM ''; fi
  while ((left)); do
    sleep 0.1 || : # Ctrl-C ends it too
    for ((i = 0; i < processes; i++)); do collect "$i"; done
    if [[ ! $deadline ]] && { ((code)) || [[ $stopping ]]; }; then deadline=$((SECONDS + grace)); fi
    if [[ $deadline ]] && ((SECONDS >= deadline)); then signal KILL -; fi
  done
  if [[ $stopping ]] || ! restartable "$code" || ((try >= retries)); then exit "$code"; fi
  echo "local.sh: restart $((try + 1)) of $retries" >&2
done
