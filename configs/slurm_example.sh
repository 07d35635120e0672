#!/bin/bash
# sbatch configs/slurm_example.sh configs/flickr8k_lstm.yaml flickr8k_lstm
# One run in jobs of limited time: start it again (or let SLURM requeue it) until it is done. A minute or two before
# the time is up SLURM sends SIGUSR1; training saves and ends, and the next job goes on with --resume. Partition,
# account and modules are your cluster's. Written by the manual, not yet tried on a cluster.
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
# several GPUs of the node: --gpus=4 above, --signal=TERM@120 (torchrun passes that on, USR1 would end it), and
#   srun torchrun --standalone --nproc-per-node 4 -m captioning train "$@"
srun captioning train "$@"
