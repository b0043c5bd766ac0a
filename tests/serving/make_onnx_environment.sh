#!/bin/bash
# Makes an environment in which exports become ONNX and PyTorch models, with the
# versions that model cards name: tests/serving/make_onnx_environment.sh DIR
#
# It needs Linux on x86-64 and Python 3.11. Afterwards the tests use it:
#
#   SUPCON_ONNX_PYTHON=DIR/bin/python scripts/test.sh tests/serving/onnx_test.py
#
# Makes it by the interpreter $PYTHON, by default python3.11.
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: ${0##*/} DIR" >&2
  exit 2
fi
"${PYTHON:-python3.11}" -m venv "$1"
"$1/bin/python" -m pip install --quiet --disable-pip-version-check \
  tensorflow==2.15.1 tf2onnx==1.17.0 onnx==1.17.0 onnxruntime==1.20.1 \
  torch==2.13.0 onnx2torch==1.5.15
echo "export SUPCON_ONNX_PYTHON=$(cd -- "$1" && pwd)/bin/python"
