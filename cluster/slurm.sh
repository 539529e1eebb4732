#!/usr/bin/env bash
# fedray under Slurm: Ray starts on every node of one allocation, the study runs on the first, all ends together.
#
#   ray get-auth-token --generate > /dev/null                       # once: the token that every request must carry
#   fedray cluster check cluster/slurm.sh                           # what is wrong, by line
#   sbatch cluster/slurm.sh studies/alpha_sweep.py --real           # again after a time limit: it goes on
#   scancel JOBID                                                   # tears down
#
# Whole nodes only: Ray uses fixed ports, and stops every Ray of the user when it is done. Home and the run folder lie
# on disks that all nodes see. To edit: the lines marked EDIT. Cost: the allocation, whether its GPUs work or not.

#SBATCH --job-name=fedray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

source "$HOME/fedray-env/bin/activate"      # EDIT: where fedray is installed
shared=/scratch/$USER/fedray                # EDIT: on a disk that all nodes see
export FEDRAY_RUNS=$shared/runs FEDRAY_CACHE=$shared/cache FEDRAY_DATA=$shared/data
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# export FEDRAY_ACCELERATOR=A100 # where nodes differ: clients keep to GPUs of this type (Ray's name for it)
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds for all nodes to come; 30 are few on a shared disk
umask 077
mkdir -p "$FEDRAY_RUNS" "$FEDRAY_CACHE" "$FEDRAY_DATA"

study=${1:?give a study, e.g. studies/alpha_sweep.py}
shift
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n 1 <<<"$nodes")
gpus=${SLURM_GPUS_ON_NODE:-0}

# one srun, one task per node; the command after -- runs on the head's node only
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "$gpus" \
  -- python -u "$study" "$@"
