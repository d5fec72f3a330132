#!/bin/bash
# One process on each node:  sbatch examples/launch/slurm.sh pretrain --run-dir runs/a --population-size 65536
# Not tried: there was no Slurm where this was written. For one process on each GPU: --ntasks-per-node and --gpus-per-task.
#SBATCH --job-name=eggroll
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# What a requeued job finds is gone on with. The folder is on a disk that the first node sees.
run=""
previous=""
for word in "$@"; do
  [ "$previous" = --run-dir ] && run=$word
  previous=$word
done
resume=()
[ -n "$run" ] && [ -e "$run/config.json" ] && resume=(--resume)

# The first node listens at a port of the job's own; every task learns from Slurm which process it is.
srun --kill-on-bad-exit=0 eggroll "$@" "${resume[@]}" --coordinator auto
