#!/bin/bash
# Makes an environment of TensorFlow 2.15 and tensorflow_hub 0.15, the last ones
# with hub.Module: tests/serving/make_hub_environment.sh DIR
#
# It needs Linux on x86-64, Python 3.10 or 3.11, 600 MB to download and 2 GB on
# disk. Afterwards the tests of a newer TensorFlow use it:
#
#   SUPCON_TENSORFLOW_2_15_PYTHON=DIR/bin/python scripts/test.sh tests/serving
#
# Makes it by the interpreter $PYTHON, by default python3.11.
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: ${0##*/} DIR" >&2
  exit 2
fi
"${PYTHON:-python3.11}" -m venv "$1"
# tensorflow_hub imports pkg_resources, which setuptools has lost in 81;
# tensorflow-datasets does not say which tensorflow-metadata goes with protobuf 4,
# nor that it needs importlib_resources.
"$1/bin/python" -m pip install --quiet --disable-pip-version-check \
  --upgrade pip
"$1/bin/python" -m pip install --quiet --disable-pip-version-check \
  tensorflow==2.15.1 tensorflow-hub==0.15.0 setuptools==79.0.1 \
  tensorflow-datasets==4.9.10 tensorflow-metadata==1.17.3 importlib_resources \
  absl-py pillow pytest
echo "export SUPCON_TENSORFLOW_2_15_PYTHON=$(cd -- "$1" && pwd)/bin/python"
