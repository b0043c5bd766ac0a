#!/bin/bash
# Runs all tests.
#
# Usage: scripts/test.sh [PYTEST OPTIONS], with paths relative to the checkout:
#   scripts/test.sh
#   scripts/test.sh -m 'not slow'
#   scripts/test.sh -x tests/losses_test.py
#   scripts/test.sh -n 4    # on four processes; -n 0 on one; otherwise on two
#
# First creates .venv if it does not exist. PYTHON=... names the Python 3.10 to
# 3.13 for it; the default is the newest one found.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

prepare_environment requirements.txt tests/requirements.txt

cd "$ROOT"
exec "$PYTHON" -m pytest -c tests/pytest.ini --rootdir="$ROOT" \
  --durations=15 --durations-min=1 -n 2 --dist=loadfile \
  --no-loadscope-reorder \
  "$@"
