#!/usr/bin/env bash
# One TPU slice, or SLICES of them (Multislice), by queued resources.
#   launch/tpu.sh COMMAND [--dry_run] [--dirty] [-- --config C --workdir W ...]
#   create        asks for the slice and waits until it is there
#   setup         ships the code to all hosts, installs it, mounts SHARE
#   run -- ...    starts the program on all hosts; again: goes on
#   watch         state, exit codes, and the log of the first host
#   stop          all hosts save a checkpoint and end; the slice stays
#   delete        gives everything back
#   state, codes  for launch/tpu_keep.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "$@"

slice() {
  run gcloud compute tpus queued-resources "$@" \
    --project="$PROJECT" --zone="$ZONE" --quiet
}
everywhere() { slice ssh "$NAME" --node=all --worker=all --command="$1"; }
state() { # ACTIVE, ..., ABSENT; UNKNOWN when it cannot be asked
  local now
  now=$(slice list --filter="name~/$NAME$" --format='value(state.state)') || now=UNKNOWN
  echo "${now:-ABSENT}"
}

wait_until_active() {
  local now
  if [[ $dry_run ]]; then state; return; fi
  while now=$(state) && [[ $now != ACTIVE ]]; do
    echo "$NAME is $now"
    case $now in ABSENT | FAILED | SUSPENDED) die 'launch/tpu.sh delete, then create' ;; esac
    sleep "${POLL:-30}"
  done
}

case $command in
  create)
    nodes=(--node-id="$NAME")
    if ((SLICES > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
    slice create "$NAME" "${nodes[@]}" --accelerator-type="$TYPE" \
      --runtime-version="$RUNTIME" --valid-until-duration="$VALID_FOR" ${SPOT:+--spot}
    wait_until_active
    ;;
  setup)
    code=$(mktemp)
    trap 'rm -f "$code"' EXIT
    archive "$code"
    slice scp "$code" "$NAME:code.tar.gz" --node=all --worker=all
    everywhere "rm -rf new && mkdir new && tar -xzf code.tar.gz -C new && new/launch/tpu_host.sh setup $SHARE"
    ;;
  run)
    workdir >/dev/null
    everywhere "RETRIES=$RETRIES code/launch/tpu_host.sh start $(quote "${arguments[@]}" --distributed)"
    ;;
  watch)
    state
    everywhere 'code/launch/tpu_host.sh code'
    slice ssh "$NAME" --node=0 --worker=0 --command='tail -n 40 -F run.log'
    ;;
  stop) everywhere 'code/launch/tpu_host.sh stop' ;;
  delete) slice delete "$NAME" --force ;;
  state) state ;;
  codes) everywhere 'code/launch/tpu_host.sh code' ;;
  *) die 'commands: create, setup, run, watch, stop, delete, state, codes' ;;
esac
