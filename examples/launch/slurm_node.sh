#!/usr/bin/env bash
# What srun starts once on every node: accelerate's launcher with this node's place in the job, and one process a GPU.
# The arguments are those of `accelerate launch`: a script or -m module, and its own.
set -euo pipefail

# A session of its own, so that Slurm's signal reaches this script only: torch's launcher kills its processes 30 s after
# a SIGTERM of its own, which is too short for the state of a large model. Here they get all the time there is.
setsid accelerate launch \
    --config_file "${VMAS_LAUNCH:-examples/launch/gpu8.yaml}" \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))" \
    --machine_rank "$SLURM_NODEID" \
    --rdzv_backend c10d \
    --main_process_ip "$MASTER_ADDR" \
    --main_process_port "$MASTER_PORT" \
    "$@" &
launcher=$!
trap 'pkill -TERM -P "$launcher" || true' TERM

code=0
wait "$launcher" || code=$?
while kill -0 "$launcher" 2>/dev/null; do # the signal ended `wait`, not the launcher
    code=0
    wait "$launcher" || code=$?
done
exit "$code"
