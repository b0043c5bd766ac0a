#!/bin/bash
# Makes the environment of the newest tensorflow_hub, with the newest TensorFlow
# and Keras: tests/serving/make_hub_environment.sh DIR
#
# It needs Linux on x86-64, Python 3.10 to 3.13, 650 MB to download and 2.2 GB on
# disk. It must not be the environment of this project, which needs an older
# TensorFlow. Afterwards:
#
#   SUPCON_NEWEST_HUB_PYTHON=DIR/bin/python \
#     python -m pytest tests/serving/newest_hub_test.py
#
# Makes it by the interpreter $PYTHON, by default python3.
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: ${0##*/} DIR" >&2
  exit 2
fi
"${PYTHON:-python3}" -m venv "$1"
# tensorflow_hub imports tf_keras, which has to be as new as TensorFlow, and
# pkg_resources, which setuptools has lost since.
"$1/bin/python" -m pip install --quiet --disable-pip-version-check \
  tensorflow==2.21.0 tf_keras==2.21.0 tensorflow-hub==0.16.1 \
  setuptools==79.0.1
echo "export SUPCON_NEWEST_HUB_PYTHON=$(cd -- "$1" && pwd)/bin/python"
