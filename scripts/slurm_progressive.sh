#!/usr/bin/env bash
# One stage on several nodes under SLURM; the stages in turn:
#     for stage in 1 2 3; do
#         STAGE=$stage DATASET=/data/dataset OUTPUT=/scratch/run sbatch --wait scripts/slurm_progressive.sh
#     done
# SLURM warns two minutes before the time is up: the training writes its checkpoint and ends, and the job is put into
# the queue again, where it goes on. DATASET and OUTPUT must lie on a disk that all nodes share.
#SBATCH --job-name=progressive
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
cd "${BUNDLE:-bundle}" || exit 2
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
gpus=${GPUS:-4}
srun python -m torch.distributed.run \
    --nnodes="$SLURM_NNODES" --nproc_per_node="$gpus" --max-restarts="${RESTARTS:-3}" \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$head:29500" \
    -m monai.bundle run training \
    --config_file "['configs/stage$STAGE.json','configs/multi_gpu.json']" \
    --dataset_dir "$DATASET" --resume auto \
    --ckpt_dir "$OUTPUT/models" --log_dir "$OUTPUT/logs/stage$STAGE" --cache_dir "$OUTPUT/cache"
code=$?
# 143: a signal ended it after its checkpoint.
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
