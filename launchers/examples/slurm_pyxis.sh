#!/bin/bash
#SBATCH --account=science
#SBATCH --array=1-4%2
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=rows-llama31-8b-32k-ef61377c
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/lustre/me/runs/rows_llama31_8b_32k/slurm/%A_%a.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=TERM@120

module load cuda
export PYTHONUNBUFFERED=1
export NCCL_NVLS_ENABLE=0
export CUDA_DEVICE_MAX_CONNECTIONS=1
export NCCL_IB_DISABLE=1
export NCCL_SOCKET_IFNAME=eth0
export GLOO_SOCKET_IFNAME=eth0
export DATA='a b; $HOME'
cd /lustre/me || exit 1

srun --kill-on-bad-exit=0 --wait=120 '--container-image=nvcr.io#nvidia/nemo:25.11' --container-mounts=/lustre/data:/data,/lustre/me:/lustre/me --container-workdir=/lustre/me \
  /opt/venv/bin/python -m nemo_cdt.launch.node /lustre/me/runs/rows_llama31_8b_32k/config.yaml
code=$?

# SIGTERM asked for the end and the run has saved, or it failed: the next attempt goes on from the last checkpoint
if [ "$code" -ne 0 ] && [ "$code" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

# job1=$(sbatch --parsable /lustre/me/runs/rows_llama31_8b_32k/slurm/job.sh)
