#!/usr/bin/env bash
# Keeps a run going on spot TPUs until it is over: makes the slice again when it
# was preempted, and starts the same command, RETRIES times at most. Ends with
# the program's exit code; with --delete gives the slice back then.
#   launch/tpu_keep.sh [--delete] [--dry_run] [--dirty] -- --config C --workdir W ...
set -euo pipefail
delete=''
if [[ ${1:-} == --delete ]]; then delete=1; shift; fi
source "$(dirname "$0")/common.sh"
parse keep "$@"
workdir >/dev/null

tpu() {
  "$here/tpu.sh" "$1" ${dry_run:+--dry_run} ${dirty:+--dirty} "${@:2}"
}

bring_up() {
  local now
  while now=$(tpu state) && [[ $now == SUSPENDING || $now == UNKNOWN ]]; do
    sleep "${POLL:-30}"
  done
  case $now in
    ACTIVE) return ;;
    FAILED | SUSPENDED) tpu delete ;;
  esac
  tpu create
  tpu setup
}

# Prints the exit code of the run, or 'lost' when the slice is.
outcome() {
  local codes code
  while [[ $(tpu state) =~ ^(ACTIVE|UNKNOWN)$ ]]; do
    codes=$(tpu codes | grep -o 'code=[a-z0-9]*') || codes=running
    codes=${codes//code=/}
    if [[ $codes != *running* ]]; then
      for code in 1 2 3; do
        if grep -qx "$code" <<<"$codes"; then echo "$code"; return; fi
      done
      if grep -qvx 0 <<<"$codes"; then echo 75; else echo 0; fi
      return
    fi
    sleep "${POLL:-30}"
  done
  echo lost
}

if [[ $dry_run ]]; then
  for step in create setup run state codes; do tpu "$step" -- "${arguments[@]}"; done
  [[ ! $delete ]] || tpu delete
  exit
fi
for ((try = 0; try <= RETRIES; try++)); do
  bring_up
  tpu run -- "${arguments[@]}" || continue
  code=$(outcome)
  echo "$NAME: $code"
  if [[ $code != lost && $code != 75 ]]; then break; fi
done
[[ ! $delete ]] || tpu delete
if [[ $code == lost ]]; then code=75; fi
exit "$code"
