#!/usr/bin/env bash
# GPU hosts on any Kubernetes cluster that has JobSet, by launch/jobset.yaml.
#   launch/jobset.sh run|watch|delete [--dry_run] [-- --config C --workdir W ...]
# The code is in IMAGE (launch/image.sh build, then push).
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "$@"

fill_in() {
  local text key value ARGUMENTS SERVER EXPORT
  text=$(<"$here/jobset.yaml")
  # shellcheck disable=SC2034
  ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "${arguments[@]}")
  # shellcheck disable=SC2034
  SERVER=${SHARE%%:*} EXPORT=${SHARE#*:}
  for key in NAME RETRIES NODES GPU IMAGE ARGUMENTS GPUS SERVER EXPORT; do
    value=${!key}
    text=${text//"\${$key}"/"$value"}
  done
  printf '%s\n' "$text"
}

case $command in
  run)
    workdir >/dev/null
    [[ $SHARE ]] || die 'SHARE is empty; set it to HOST:/PATH of an NFS export'
    filled=$(mktemp)
    trap 'rm -f "$filled"' EXIT
    fill_in >"$filled"
    if [[ $dry_run ]]; then cat "$filled"; fi
    # A JobSet that is over cannot be started again; one that runs saves first.
    run kubectl delete jobset "$NAME" --ignore-not-found --wait=true
    run kubectl create --filename="$filled"
    ;;
  watch)
    run kubectl get jobset "$NAME"
    run kubectl logs --follow --tail=40 \
      --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete) run kubectl delete jobset "$NAME" --ignore-not-found --wait=true ;;
  *) die 'commands: run, watch, delete' ;;
esac
