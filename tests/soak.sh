#!/bin/bash
# A trainer and an evaluator under random faults; see tests/soak.py.
#
# Usage: tests/soak.sh [FAULTS] [SECONDS]
#   tests/soak.sh           # 100 faults
#   tests/soak.sh 25 3600   # 25 at a time, until an hour has passed
#
# Each round has another seed and a new directory below runs/soak. Ends with 1
# after the first round with a problem. Full disks are made of a tmpfs, which
# takes root; others get a limit on the size of the trainer's files instead.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"

FAULTS="${1:-100}"
ENOUGH="${2:-0}"

prepare_environment requirements.txt tests/requirements.txt

cd "$ROOT"
mkdir -p runs/soak
DIRECTORY="$(mktemp -d "runs/soak/$(date +%Y%m%d-%H%M%S)-XXXX")"
SECONDS=0
seed=0
while ((seed == 0 || SECONDS < ENOUGH)); do
  seed=$((seed + 1))
  "$PYTHON" -m tests.soak --faults "$FAULTS" --seed "$seed" \
    --directory "$DIRECTORY/$seed"
done
