#!/bin/bash
# sbatch configs/slurm_example.sh flickr8k_lstm my_run
# Trains one run in jobs of limited time: submit it again, or let SLURM requeue it, until the run is finished.
# Two minutes before the time limit SLURM sends SIGUSR1; training saves a checkpoint and exits, and the next job
# resumes from it. Add your cluster's partition, account and modules. Not yet tried on a cluster.
#SBATCH --job-name=captioning
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus=1
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -eu
config=$1 name=$2
. .venv/bin/activate
if compgen -G "runs/$name/checkpoints/*/manifest.json" >/dev/null; then
    set -- "runs/$name/config.yaml" --resume
else
    set -- "$config" "name=$name"
fi
# For several GPUs of one node set --gpus=4 and --signal=TERM@120 above (torchrun forwards SIGTERM; SIGUSR1 would
# end it) and use:
#   srun torchrun --standalone --nproc-per-node 4 -m captioning train "$@"
srun captioning train "$@"
