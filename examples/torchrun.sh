#!/usr/bin/env bash
# The same command on every node of a run without a scheduler:
#
#   NODES=2 HEAD=node0 bash examples/torchrun.sh --config mine.yaml --run runs/mine
#
# NODES    number of nodes (1)
# GPUS     GPUs of each node (all that nvidia-smi lists)
# HEAD     address of one of the nodes, the same on all (localhost)
# PORT     a free port on it (29500)
# STRATEGY ddp, or fsdp where the encoders are too large for one GPU (ddp)
#
# The run folder and the data must be on storage that all nodes share. A process that dies ends the
# run on all nodes; the same command goes on from the last checkpoint.
set -euo pipefail

NODES=${NODES:-1}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
HEAD=${HEAD:-localhost}
PORT=${PORT:-29500}
STRATEGY=${STRATEGY:-ddp}

exec torchrun \
    --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts 0 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id decur \
    -m -- decur.cli pretrain \
    --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" --trainer.strategy "$STRATEGY" "$@"
