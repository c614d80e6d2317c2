#!/usr/bin/env bash
# A run on a SLURM cluster, called on its login node, in a checkout that lies on
# the shared file system.
#   launch/slurm.sh run|watch|delete [--dry_run] [--dirty] [-- --config C --workdir W ...]
# Partition and account: SBATCH_PARTITION and SBATCH_ACCOUNT, which sbatch reads.
set -euo pipefail
source "$(dirname "$0")/common.sh"
parse "$@"

case $command in
  run)
    folder=$(workdir)
    code=$(mktemp)
    trap 'rm -f "$code"' EXIT
    archive "$code"
    # A copy: the job may start days later, or again, after the tree changed.
    copy=$root/runs/code/$tree
    run mkdir -p "$copy" "$folder"
    run tar -xzf "$code" -C "$copy"
    run sbatch --job-name="$NAME" --chdir="$copy" --nodes="$NODES" \
      --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
      --cpus-per-task="$CPUS" --time="$TIME" --output="$folder/slurm-%j.out" \
      --export="ALL,RETRIES=$RETRIES,PYTHON=${PYTHON:-$root/.venv/bin/python}" \
      "$copy/launch/slurm.sbatch" "${arguments[@]}"
    ;;
  watch) run squeue --me --name="$NAME" --long ;;
  delete)
    jobs=$(run squeue --me --name="$NAME" --noheader --format=%A)
    if [[ $dry_run ]]; then echo "$jobs"; jobs=JOB; fi
    for job in $jobs; do
      # Else it saves, ends with 75 and puts itself back into the queue.
      run scontrol update "JobId=$job" Requeue=0
      run scancel "$job"
    done
    ;;
  *) die 'commands: run, watch, delete' ;;
esac
