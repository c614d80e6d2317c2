"""Flags of the programs that the launchers call, from their documentation.

A flag that takes a value ends in '='. What is not listed is refused. Those of
queued resources, Filestore and xpk were looked up in their references in 2026;
those of docker, kubectl, SLURM and SkyPilot come from their general manuals.
"""

from typing import NamedTuple


class Known(NamedTuple):
  """One command."""

  flags: str  # separated by spaces
  words: int | None = 0  # positional ones; None: the first ends the flags
  makes: str = ''  # kind of the thing that the command makes
  ends: str = ''  # kind of the thing that it deletes


# cloud.google.com/sdk/gcloud/reference
GCLOUD = '--project= --zone= --quiet --format= --filter= '
QR = 'gcloud compute tpus queued-resources '
SSH = '--node= --worker= --batch-size= --internal-ip --tunnel-through-iap '
# github.com/AI-Hypercomputer/xpk, src/xpk/parser
XPK = '--cluster= --project= --zone= '

COMMANDS = {
  QR + 'create': Known(
    GCLOUD + '--accelerator-type= --runtime-version= --node-id= --node-count= '
    '--node-prefix= --spot --reserved --async --valid-until-duration= '
    '--network= --subnetwork= --labels= --metadata=',
    words=1,
    makes='tpu',
  ),
  QR + 'delete': Known(GCLOUD + '--force --async', words=1, ends='tpu'),
  QR + 'list': Known(GCLOUD + '--limit= --sort-by='),
  QR + 'ssh': Known(GCLOUD + SSH + '--command= --output-directory=', words=1),
  QR + 'scp': Known(GCLOUD + SSH + '--compress --recurse', words=2),
  'gcloud filestore instances create': Known(
    GCLOUD + '--tier= --file-share= --network= --async',
    words=1,
    makes='filestore',
  ),
  'gcloud filestore instances describe': Known(GCLOUD, words=1),
  'gcloud filestore instances delete': Known(
    GCLOUD + '--async --force', words=1, ends='filestore'
  ),
  # cloud.google.com/sdk/gcloud/reference/artifacts/docker/images/delete
  'gcloud artifacts docker images delete': Known(
    GCLOUD + '--delete-tags --async', words=1, ends='pushed image'
  ),
  'xpk cluster create': Known(
    XPK + '--tpu-type= --device-type= --num-slices= --num-nodes= --spot '
    '--on-demand --reservation= --flex --enable-gcpfilestore-csi-driver',
    makes='cluster',
  ),
  'xpk cluster delete': Known(XPK + '--force', ends='cluster'),
  'xpk storage attach': Known(
    XPK + '--type= --auto-mount= --mount-point= --readonly= --size= --vol= '
    '--instance= --access-mode=',
    words=1,
    makes='storage',
  ),
  'xpk storage detach': Known(XPK, words=1, ends='storage'),
  'xpk workload create': Known(
    XPK + '--workload= --command= --tpu-type= --device-type= --num-slices= '
    '--docker-image= --storage= --max-restarts= --restart-on-exit-codes= '
    '--termination-grace-period-seconds= --priority= --env=',
    makes='workload',
  ),
  'xpk workload delete': Known(XPK + '--workload= --force', ends='workload'),
  'xpk workload list': Known(XPK + '--filter-by-status= --filter-by-job='),
  # kubernetes.io/docs/reference/kubectl/generated
  'kubectl create': Known('--filename=', makes='jobset'),
  'kubectl delete jobset': Known(
    '--ignore-not-found --wait=', words=1, ends='jobset'
  ),
  'kubectl get jobset': Known('--watch --output=', words=1),
  'kubectl logs': Known('--follow --tail= --selector= --container='),
  # docs.docker.com/reference/cli/docker
  'docker build': Known(
    '--tag= --file= --build-arg= --platform=', words=1, makes='image'
  ),
  'docker push': Known('', words=1, makes='pushed image'),
  'docker run': Known('--rm --gpus= --volume= --env= --shm-size=', words=None),
  'docker image rm': Known('--force', words=1, ends='image'),
  # docs.skypilot.co/en/stable/reference/cli.html
  'sky jobs launch': Known(
    '--yes --detach-run --name= --workdir= --env= --num-nodes= --gpus= '
    '--infra= --use-spot',
    words=1,
    makes='sky job',
  ),
  'sky jobs queue': Known('--all --refresh'),
  'sky jobs logs': Known('--name= --controller'),
  'sky jobs cancel': Known('--yes --name= --all', ends='sky job'),
  'sky status': Known('--refresh'),
  'sky storage delete': Known('--yes --all', words=1, ends='bucket'),
  # slurm.schedmd.com
  'sbatch': Known(
    '--job-name= --chdir= --nodes= --ntasks-per-node= --gpus-per-node= '
    '--cpus-per-task= --time= --output= --export= --requeue --open-mode= '
    '--signal=',
    words=None,
    makes='job',
  ),
  'srun': Known('--kill-on-bad-exit= --cpus-per-task=', words=None),
  'squeue': Known('--me --name= --long --noheader --format='),
  'scancel': Known('--signal= --full', words=1, ends='job'),
  'scontrol requeue': Known('', words=1),
  'scontrol update': Known('', words=None),
}
