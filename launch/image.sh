#!/usr/bin/env bash
# The container image IMAGE, built from a clean archive.
#   launch/image.sh build|push|run|delete [--dry_run] [--dirty] [-- --config C --workdir W ...]
# run: on this machine's GPUs, one process for all of them.
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "$@"

case $command in
  build)
    code=$(mktemp)
    trap 'rm -f "$code"' EXIT
    archive "$code"
    run docker build --tag="$IMAGE" --file=launch/Dockerfile \
      --build-arg=ACCELERATOR="$ACCELERATOR" - <"$code"
    ;;
  push) run docker push "$IMAGE" ;;
  run)
    folder=$(workdir)
    run mkdir -p "$folder"
    run docker run --rm --gpus=all --volume="$folder:$folder" "$IMAGE" "${arguments[@]}"
    ;;
  delete)
    run docker image rm "$IMAGE"
    if [[ $IMAGE == *-docker.pkg.dev/* ]]; then
      run gcloud artifacts docker images delete "$IMAGE" --delete-tags --quiet
    fi
    ;;
  *) die 'commands: build, push, run, delete' ;;
esac
