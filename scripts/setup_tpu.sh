#!/bin/bash
# Installs what the code needs on a Cloud TPU VM, except TensorFlow: the one that
# is there is made for the TPU, and that of requirements.txt is not. Whatever is
# there already is left as it is.
#
# Usage: scripts/setup_tpu.sh
#   PYTHON=... names the interpreter that has TensorFlow; default: python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"

python="${PYTHON:-python3}"

# Prints the pinned requirements that are missing, one a line.
missing() {
  "$python" -c '
import importlib.metadata
import re
import sys

# They come with TensorFlow or not at all.
PARTS = {
  "keras", "libclang", "tensorboard", "tensorboard-data-server", "tensorflow",
  "tensorflow-estimator", "tensorflow-io-gcs-filesystem",
}
for line in open(sys.argv[1]):
  found = re.match(r"([\w.-]+)==\S+", line)
  if found and found[1] not in PARTS:
    try:
      importlib.metadata.version(found[1])
    except importlib.metadata.PackageNotFoundError:
      print(found[0])
' "$ROOT/requirements.txt"
}

if ! version="$("$python" -c '
import os
import sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
assert sys.version_info >= (3, 10), "Python 3.10 or later is needed"
import tensorflow as tf
tf.compat.v1.estimator.tpu.TPUEstimator
print(tf.__version__)' 2>&1)"; then
  echo "$version" | tail -n 1 >&2
  echo "[set-up] $python has no TensorFlow with TPUEstimator, which is 2.15 or" \
    'earlier; see "Cloud TPU" in README.md.' >&2
  exit 1
fi
version="${version##*$'\n'}"

packages=()
while IFS= read -r package; do
  packages+=("$package")
done < <(missing)
echo "[set-up] TensorFlow $version stays; ${#packages[@]} packages are missing."
if [[ ${#packages[@]} -gt 0 ]]; then
  # Without dependencies, for one of them could ask for another TensorFlow.
  "$python" -m pip install --no-input --no-deps "${packages[@]}"
fi
"$python" -c 'import absl, tensorflow_datasets' \
  || { echo '[set-up] What is installed does not go together; see above.' >&2
       exit 1; }
