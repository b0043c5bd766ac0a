#!/bin/bash
# Installs the requirements of the code beside a TensorFlow that must not
# change: the one of a Cloud TPU VM or of a cluster's image, 2.15.1 to 2.21.
# Installed packages are not changed.
#
# Usage: scripts/setup_tpu.sh
#   PYTHON=... names the interpreter that has TensorFlow; default: python3.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"

python="${PYTHON:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

fail() {
  echo "[set-up] $*" >&2
  exit 1
}

# Prints the version of TensorFlow without importing it or its requirements.
tensorflow_version() {
  "$python" -c '
import importlib.metadata as metadata
import importlib.util

assert importlib.util.find_spec("tensorflow"), "no TensorFlow"
for name in ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tf-nightly"):
  try:
    print(metadata.version(name))
    break
  except metadata.PackageNotFoundError:
    pass
else:
  import tensorflow
  print(tensorflow.__version__)' 2> "$work/error"
}

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' \
  || fail "$python is too old, expected Python 3.10 to 3.13."
version="$(tensorflow_version)" \
  || fail "$python has no TensorFlow ($(tail -n 1 "$work/error")), expected" \
    '2.15 to 2.21; where none must stay, run scripts/quickstart.sh or' \
    "$python -m pip install -r requirements.txt"
IFS=. read -r major minor _ <<< "$version"
if ((major < 2 || (major == 2 && minor < 15))); then
  fail "TensorFlow $version of $python is too old, expected 2.15 to 2.21."
fi
if ((major > 2 || minor > 21)); then
  echo "[set-up] TensorFlow $version is newer than 2.21, the newest that was" \
    'tried.'
fi

# Writes $work/constraints, which pins all installed packages, and the missing
# requirements: $work/alone has those that pip must install without their own
# requirements, which would lead to another TensorFlow; $work/others has the
# rest.
"$python" - "$major" "$minor" "$work" << 'END'
import importlib.metadata
import pathlib
import re
import sys

major, minor = int(sys.argv[1]), int(sys.argv[2])
work = pathlib.Path(sys.argv[3])
installed = {}
for distribution in importlib.metadata.distributions():
  name = re.sub(r'[-_.]+', '-', distribution.metadata['Name'] or '').lower()
  installed.setdefault(name, distribution.version)

# cloud-tpu-client requires a client of Google's APIs from 2020, which conflicts
# with every later google-auth; but it works with later clients.
alone = ['tensorflow-hub==0.16.1', 'cloud-tpu-client==0.10']
if (major, minor) >= (2, 16):
  alone += ['tensorflow-estimator==2.15.0', f'tf_keras=={major}.{minor}.*']
others = [
  'absl-py',
  'google-api-python-client',
  'importlib_resources',
  'matplotlib',
  'oauth2client',
  'packaging',
  'setuptools<81',  # The last with pkg_resources.
  'tensorflow-datasets==4.9.10',
]


def is_missing(requirement):
  name = re.match(r'[\w.-]+', requirement)[0]
  return re.sub(r'[-_.]+', '-', name).lower() not in installed


constraints = [
  f'{name}=={version}'
  for name, version in installed.items()
  # pip does not accept every version string of Debian.
  if name and re.fullmatch(r'[0-9][0-9a-zA-Z.]*(\+[\w.]+)?', version)
]
protobuf = installed.get('protobuf', '7.0').split('.')[:2]
if tuple(map(int, protobuf)) < (6, 31):
  # Later versions need protobuf 6.31, but do not declare it.
  constraints.append('tensorflow-metadata<1.18')
for name, lines in (
  ('constraints', constraints),
  ('alone', filter(is_missing, alone)),
  ('others', filter(is_missing, others)),
):
  (work / name).write_text(''.join(f'{line}\n' for line in lines))
END

missing="$(cat "$work/alone" "$work/others")"
echo "[set-up] TensorFlow $version stays;" \
  "missing: $(echo "${missing:-nothing}" | tr '\n' ' ')"
pip=("$python" -m pip install --no-input --disable-pip-version-check)
if [[ -s "$work/others" ]]; then
  "${pip[@]}" -c "$work/constraints" -r "$work/others"
fi
if [[ -s "$work/alone" ]]; then
  "${pip[@]}" --no-deps -r "$work/alone"
fi

cd "$ROOT"
"$python" -c '
import sys
from supcon.compute import installation
try:
  installation.load()
except installation.InstallationError as error:
  sys.exit(f"[set-up] {error}")
try:
  import pkg_resources
except ImportError:
  print("[set-up] setuptools has no pkg_resources, which cloud-tpu-client and",
        "tensorflow-hub import. If --tpu_name or --reference_ckpt=https://...",
        "is refused: pip install \"setuptools<81\"")
' || exit 1
echo '[set-up] Ready.'
