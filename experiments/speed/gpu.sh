#!/usr/bin/env bash
# W2 and a workload of BERT-base's size (random weights) at K = 1, 8, 32, 128, in float32 and bfloat16, the plain loop and
# stock Flower beside them, on one GPU; prints one table and writes results/gpu.md and results/gpu.json.
#     experiments/speed/gpu.sh                  needs a CUDA device
#     experiments/speed/gpu.sh --cpu --quick    tests the script itself, measures nothing
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" experiments/speed/gpu.py "$@"
