#!/usr/bin/env bash
# The file system that all hosts of a run share: a Filestore instance (NFS).
# It outlives slices and clusters, and costs money until it is deleted.
#   launch/share.sh create|address|delete [--dry_run]
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "$@"

filestore() {
  run gcloud filestore instances "$1" "$NAME-runs" \
    --project="$PROJECT" --zone="$ZONE" "${@:2}"
}

case $command in
  create)
    filestore create --tier=BASIC_HDD --network=name=default \
      --file-share=name=runs,capacity=1TB
    echo "put SHARE into launch/env: $(basename "$0") address prints it"
    ;;
  address)
    ip=$(filestore describe --format='value(networks[0].ipAddresses[0])')
    if [[ $dry_run ]]; then echo "$ip"; else echo "$ip:/runs"; fi
    ;;
  delete) filestore delete ;; # gcloud asks first: checkpoints are in there
  *) die 'commands: create, address, delete' ;;
esac
