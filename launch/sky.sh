#!/usr/bin/env bash
# A managed job of SkyPilot (pip install skypilot), by launch/sky.yaml.
#   launch/sky.sh run|watch|delete|delete_bucket [--dry_run] [--dirty] [-- --config C --workdir /runs/W ...]
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "$@"

case $command in
  run)
    folder=$(workdir)
    [[ $folder == /runs/* ]] || die '--workdir must lie in /runs, where the bucket is'
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    archive "$copy/code.tar.gz"
    run tar -xzf "$copy/code.tar.gz" -C "$copy"
    run rm "$copy/code.tar.gz"
    run sky jobs launch --yes --detach-run --name="$NAME" --workdir="$copy" \
      --gpus="$ACCELERATORS" --env=BUCKET="$BUCKET" \
      --env=ARGUMENTS="$(quote "${arguments[@]}")" "$copy/launch/sky.yaml"
    ;;
  watch)
    run sky jobs queue
    run sky jobs logs --name="$NAME"
    ;;
  delete)
    run sky jobs cancel --yes --name="$NAME"
    run sky status # what still costs money; sky down NAME ends it
    ;;
  delete_bucket) run sky storage delete "$BUCKET" ;; # asks first: checkpoints
  *) die 'commands: run, watch, delete, delete_bucket' ;;
esac
