#!/bin/bash
# Trains on your own images. It examines them, chooses network, views and
# schedule, explains the choice, then runs SupCon pretraining, a linear
# classifier, evaluation and export. Small images take minutes on two CPU cores.
#
# Usage: scripts/own_images.sh DIR [FLAGS]
#   scripts/own_images.sh ~/digits                   # ~/digits/CLASS/*.png
#   scripts/own_images.sh ~/photos --image_size=64   # a smaller, faster recipe
#
# DIR holds a folder of images for each class, and a fifth of each is kept for
# evaluation; or DIR holds train/ and val/ with such folders. Your flags
# override the chosen ones. Without $PYTHON, the script first creates .venv if
# it does not exist, like scripts/quickstart.sh. Trained models go to runs/, one
# directory per DIR and list of flags.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"

if [[ -z "${PYTHON:-}" && $# -gt 0 && "$1" != -* ]]; then
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  prepare_environment requirements.txt
fi

chosen="$("$(interpreter)" "$ROOT/scripts/own_images.py" "$@")" || exit $?
flags=()
while IFS= read -r flag; do
  flags+=("$flag")
done <<< "$chosen"

# An absolute path, if it is local.
directory="$(CDPATH='' cd -- "$1" 2> /dev/null && pwd)" || directory="$1"
shift
run="$(basename -- "$directory" | tr -c '[:alnum:]._\n-' _)"

run_main "${SUPCON[@]}" \
  --mode=train_then_eval \
  --use_tpu=False \
  --input_fn=folder \
  --shard_per_host=False \
  --model_dir="$ROOT/runs/$run-$(checksum_of "$directory" "$@")" \
  "${flags[@]}" \
  "$@"
