#!/bin/bash
#SBATCH --account=science
#SBATCH --gpus-per-node=8
#SBATCH --job-name=rows-llama31-8b-32k-ef61377c
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/lustre/me/runs/rows_llama31_8b_32k/slurm/%j.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --time=4:00:00

module load cuda
export PYTHONUNBUFFERED=1
export NCCL_NVLS_ENABLE=0
export CUDA_DEVICE_MAX_CONNECTIONS=1
export DATA='a b; $HOME'
cd /lustre/me || exit 1

srun --kill-on-bad-exit=0 --wait=120 \
  /opt/venv/bin/python -m nemo_cdt.launch.node /lustre/me/runs/rows_llama31_8b_32k/config.yaml
code=$?

# a user's mistake, which no job of the chain would mend
if [ "$code" -eq 2 ]; then
  scancel --quiet --me --state=PENDING --name=rows-llama31-8b-32k-ef61377c
fi

# SIGTERM asked for the end and the run has saved, or it failed: the next attempt goes on from the last checkpoint
if [ "$code" -ne 0 ] && [ "$code" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

# job1=$(sbatch --parsable /lustre/me/runs/rows_llama31_8b_32k/slurm/job.sh)
# job2=$(sbatch --parsable --dependency=afternotok:$job1 --kill-on-invalid-dep=yes /lustre/me/runs/rows_llama31_8b_32k/slurm/job.sh)
# job3=$(sbatch --parsable --dependency=afternotok:$job1:$job2 --kill-on-invalid-dep=yes /lustre/me/runs/rows_llama31_8b_32k/slurm/job.sh)
