#!/usr/bin/env bash
#SBATCH --job-name=gr_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Runs a main on the GPUs of a Slurm job, one process a node.
#
#   sbatch [--nodes=2 ...] launch/gpu_slurm.sh [--dry-run] MAIN FLAGS...
#   sbatch launch/gpu_slurm.sh pipeline --config=configs/beauty.py \
#     --config.data.path=DATA/beauty --workdir=/shared/runs/beauty
#
# Submit from the checkout, with .venv made by `pip install -e '.[gpu]'` in it,
# both on a file system that all nodes see; so must --workdir be. Two minutes
# before its time is up the job gets SIGTERM, saves a checkpoint and ends;
# requeued or submitted again it goes on where it stopped.
set -euo pipefail

dry_run=0
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
if (($# == 0)); then
  echo 'error: say which main: launch/gpu_slurm.sh [--dry-run] MAIN FLAGS...' >&2
  exit 2
fi
main=$1
shift

# Under sbatch this file is a copy elsewhere; the job starts in the checkout.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
nodes=${SLURM_JOB_NUM_NODES:-1}
command=(.venv/bin/python -m "launch.$main" "$@")
if ((nodes > 1)); then
  first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # A port of the job's own, so that jobs on one node do not meet.
  export GR_JAX_COORDINATOR="$first:$((20000 + SLURM_JOB_ID % 20000))"
  export GR_JAX_NUM_PROCESSES=$nodes
fi

# srun sets SLURM_PROCID on each node; the process's number is only known there.
# shellcheck disable=SC2016
step=(srun --nodes="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1
  bash -c 'GR_JAX_PROCESS_ID=$SLURM_PROCID exec "$@"' _ "${command[@]}")
if ((dry_run)); then
  if ((nodes > 1)); then
    echo "GR_JAX_COORDINATOR=$GR_JAX_COORDINATOR" \
      "GR_JAX_NUM_PROCESSES=$GR_JAX_NUM_PROCESSES"
  fi
  printf '%q ' "${step[@]}" && printf '\n'
  exit 0
fi
exec "${step[@]}"
