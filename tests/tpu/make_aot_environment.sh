#!/bin/bash
# Makes the environment of the TPU compiler: tests/tpu/make_aot_environment.sh DIR
#
# It needs no TPU, but Linux on x86-64, Python 3.11 or newer, 700 MB to download
# and 1.3 GB on disk. It must not be the environment of the other tests, which
# need an older jaxlib. Afterwards:
#
#   SUPCON_AOT_PYTHON=DIR/bin/python python -m pytest tests/tpu/aot_test.py
#
# Makes it by the interpreter $PYTHON, by default python3.
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: ${0##*/} DIR" >&2
  exit 2
fi
"${PYTHON:-python3}" -m venv "$1"
"$1/bin/python" -m pip install --quiet --disable-pip-version-check \
  'jax[tpu]==0.10.2' jaxlib==0.10.2 libtpu==0.0.42.1
echo "export SUPCON_AOT_PYTHON=$(cd -- "$1" && pwd)/bin/python"
