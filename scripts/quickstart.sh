#!/bin/bash
# The main job on the embedded handwritten digits: SupCon pretraining of a
# narrow ResNet-18, then a linear classifier, then evaluation and export.
# Hardware: two CPU cores, about 2 minutes after installation. Expected top-1:
# 99, at least 98.0.
#
# Usage: scripts/quickstart.sh [FLAGS]
#   scripts/quickstart.sh
#   scripts/quickstart.sh --use_labels=False    # SimCLR
#
# First creates .venv if it does not exist. PYTHON=... names the Python 3.10 to
# 3.13 for it; the default is the newest one found. Trained models go to runs/,
# one directory per list of flags, so the same model is not trained twice.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

prepare_environment requirements.txt

run=quickstart
if [[ $# -gt 0 ]]; then
  run="quickstart-$(checksum_of "$@")"
fi

run_main "${SUPCON[@]}" "${DIGITS[@]}" \
  --mode=train_then_eval \
  --use_tpu=False \
  --data_dir="$ROOT/runs/data" \
  --model_dir="$ROOT/runs/$run" \
  "$@"
