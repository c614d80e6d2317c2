#!/usr/bin/env bash
# TPU slices on Google's Kubernetes (GKE), by xpk (pip install xpk).
#   launch/xpk.sh create|run|watch|stop|delete [--dry_run] [-- --config C --workdir W ...]
# The code is in IMAGE (ACCELERATOR=tpu launch/image.sh build, then push).
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "$@"

xpk_() {
  run xpk "$@" --cluster="$NAME" --project="$PROJECT" --zone="$ZONE"
}

case $command in
  create)
    if [[ $SPOT ]]; then capacity=--spot; else capacity=--on-demand; fi
    xpk_ cluster create --tpu-type="$TYPE" --num-slices="$SLICES" "$capacity" \
      --enable-gcpfilestore-csi-driver
    xpk_ storage attach "$NAME-runs" --type=gcpfilestore --instance="$NAME-runs" \
      --vol=runs --size=1024 --mount-point=/mnt/runs --readonly=false --auto-mount=false
    ;;
  run)
    workdir >/dev/null
    # xpk restarts after signals by itself, and after 75 because it is told to;
    # never after 1, 2 or 3. A finished workload keeps its name: it goes first.
    xpk_ workload delete --workload="$NAME" --force || :
    xpk_ workload create --workload="$NAME" --docker-image="$IMAGE" \
      --tpu-type="$TYPE" --num-slices="$SLICES" --storage="$NAME-runs" \
      --max-restarts="$RETRIES" --restart-on-exit-codes=75 \
      --termination-grace-period-seconds=300 \
      --command="python -m jax_robust_kd.main $(quote "${arguments[@]}" --distributed)"
    ;;
  watch)
    xpk_ workload list
    run kubectl logs --follow --tail=40 \
      --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  stop) xpk_ workload delete --workload="$NAME" --force ;;
  delete)
    xpk_ storage detach "$NAME-runs"
    xpk_ cluster delete --force
    ;;
  *) die 'commands: create, run, watch, stop, delete' ;;
esac
