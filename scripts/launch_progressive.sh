#!/usr/bin/env bash
# The three stages in turn, on all GPUs of this machine. Arguments go to `progressive-cascade train`:
#     scripts/launch_progressive.sh --dataset DATASET --preset fast --output runs/first
set -euo pipefail
exec "${PYTHON:-python}" -m progressive_cascade.cli train "$@"
