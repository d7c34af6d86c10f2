#!/usr/bin/env bash
# One search on four GPUs of a SLURM cluster, as an array of jobs. Task 0 begins it, the others join; each may start
# late, be requeued or die. Start it again, and it goes on.
#
#   sbatch examples/slurm.sh
#
# RUN lies where all nodes see it. The password of the database, if it has one, belongs into ~/.pgpass.
#SBATCH --job-name=autolr
#SBATCH --array=0-3
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

run="${RUN:-$HOME/runs/llama-mnli}"
storage="${STORAGE:-postgresql://autolr@db.cluster/autolr}"

if [ "$SLURM_ARRAY_TASK_ID" = 0 ]; then
    autolr search llama-mnli --out "$run" --storage "$storage" --plain
else
    autolr worker "$run" --wait 3600 --plain
fi
