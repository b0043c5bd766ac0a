#!/bin/bash
# Trains on images of your own: looks at them, chooses network, views and
# schedule to go with them, says what and why, then SupCon pretraining, a linear
# classifier, evaluation and export. Small images take minutes on two CPU cores.
#
# Usage: scripts/own_images.sh DIR [FLAGS]
#   scripts/own_images.sh ~/digits                   # ~/digits/CLASS/*.png
#   scripts/own_images.sh ~/photos --image_size=64   # a smaller, faster recipe
#
# DIR holds a folder of images for each class, of which a fifth is kept for the
# evaluation; or train/ and val/ that do. Flags pass through, and win. Without
# $PYTHON, .venv is made first if it is not there, as scripts/quickstart.sh does.
# Trained models go to runs/, one directory for each DIR and list of flags.
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

# As a whole, if it is a local one.
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
