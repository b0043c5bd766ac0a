#!/bin/bash
# Runs all tests, on as many processes as there are cores, four at most.
#
# Usage: scripts/test.sh [PYTEST OPTIONS], with paths relative to the checkout:
#   scripts/test.sh
#   scripts/test.sh -m 'not slow'
#   scripts/test.sh -n 0 -x tests/losses_test.py    # one process, as pdb needs
#
# Makes .venv first if it is not there; PYTHON=... names the Python 3.10 or 3.11
# to make it with.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

prepare_environment requirements.txt tests/requirements.txt

# --dist=loadfile keeps the tests of one file, and so what they share, together.
cd "$ROOT"
exec "$PYTHON" -m pytest -c tests/pytest.ini --rootdir="$ROOT" \
  --numprocesses=logical --maxprocesses=4 --dist=loadfile \
  --durations=15 --durations-min=1 \
  "$@"
