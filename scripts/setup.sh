#!/bin/bash
# Makes .venv in the checkout, to be sourced by quickstart.sh and test.sh:
#
#   prepare_environment FILE...   # then "$PYTHON" is .venv's interpreter.

source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"

VENV="$ROOT/.venv"

# Written into .venv: a stamp per requirements file, with the checksum of what
# was installed, and UNFINISHED while pip is at work. A package that pip was
# stopped in the middle of can look installed, so then .venv is made anew.
STAMPS="$VENV/requirements-stamps"
UNFINISHED="$VENV/requirements-unfinished"

say() {
  echo "[set-up] $*"
}

fail() {
  echo "[set-up] $*" >&2
  exit 1
}

# Prints the version and the path of an interpreter and what it lacks, one a
# line; fails if it does not run. The path is that of the interpreter below a
# virtual environment or a shim. Has to work in any Python, even in Python 2.
probe_python() {
  "$1" -c '
import sys
print("%d.%d.%d" % sys.version_info[:3])
print(getattr(sys, "_base_executable", None) or sys.executable)
try:
  import ensurepip, venv
except ImportError:
  print("the venv module (Debian: apt-get install python3-venv)")
else:
  print("")
' 2> /dev/null < /dev/null
}

# Prints interpreters that may exist, the best first, one a line.
candidate_pythons() {
  if [[ -n "${PYTHON:-}" ]]; then
    echo "$PYTHON"
  fi
  local name
  for name in python3.11 python3.10 python3 python; do
    type -aP "$name" || true
  done
  # Versions that pyenv has installed but does not show at the moment.
  if command -v pyenv > /dev/null; then
    ls "$(pyenv root)"/versions/3.1[01].*/bin/python 2> /dev/null || true
  fi
}

is_supported() {
  [[ "$1" == 3.10.* || "$1" == 3.11.* ]]
}

# Sets BASE_PYTHON and BASE_VERSION to an interpreter that can make .venv, or
# ends the script.
find_python() {
  local candidate probed version path lack found=''
  while IFS= read -r candidate; do
    probed="$(probe_python "$candidate")" || continue
    { read -r version && read -r path && read -r lack; } <<< "$probed" || true
    if is_supported "$version" && [[ -z "$lack" ]]; then
      BASE_PYTHON="$path"
      BASE_VERSION="$version"
      return
    fi
    lack="$version${lack:+ without $lack}, $path"
    if [[ "$found" != *"$lack"* ]]; then
      found="${found:+$found; }$lack"
    fi
    if [[ "$candidate" == "${PYTHON:-}" ]]; then
      say "PYTHON=$PYTHON does not do ($lack); looking for another."
    fi
  done < <(candidate_pythons)
  fail 'Python 3.10 or 3.11 is needed (TensorFlow 2.15 is the last with' \
    'TPUEstimator and has no wheels above 3.11; the pinned TensorFlow Datasets' \
    "needs 3.10), but found only: ${found:-no Python at all}. Install one, or" \
    "name it: PYTHON=/path/to/python3.11 scripts/${0##*/}"
}

# Whether .venv works and is of the version that $PYTHON asks for, if it does.
is_venv_usable() {
  local version asked
  [[ ! -e "$UNFINISHED" && -x "$VENV/bin/python" ]] || return 1
  version="$("$VENV/bin/python" -c '
import pip, sys
print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null)" || return 1
  is_supported "$version" || return 1
  if [[ -n "${PYTHON:-}" ]] && asked="$(probe_python "$PYTHON")"; then
    asked="${asked%%$'\n'*}"
    ! is_supported "$asked" || [[ "${asked%.*}" == "${version%.*}" ]]
  fi
}

stamp_of() {
  echo "$STAMPS/${1//\//-}"
}

# Runs pip. Shows the large downloads and when it begins to install; all of its
# output goes to a file, the end of which is shown if it fails.
pip_install() {
  local log="$VENV/pip.log" line
  {
    "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check \
      --progress-bar off "$@" 2>&1 || echo 'pip has failed'
  } | while IFS= read -r line; do
    echo "$line" >&3
    case "$line" in
      *'Downloading '*' ('[0-9][0-9]*.[0-9]' MB)'*)
        line="${line##*Downloading }"
        say "  downloading ${line%%-[0-9]*} (${line##*(}"
        ;;
      'Installing collected packages:'*)
        say '  unpacking'
        ;;
    esac
  done 3> "$log"
  if [[ "$(tail -n 1 "$log")" == 'pip has failed' ]]; then
    tail -n 15 "$log" >&2
    fail "pip could not install the packages; all of its output: $log"
  fi
}

# Makes .venv, with what the given requirements files list, unless that is
# there already. The files are named relative to the checkout. Sets PYTHON.
prepare_environment() {
  local file started=$SECONDS
  local -a missing
  if ! is_venv_usable; then
    find_python
    say "Making .venv with Python $BASE_VERSION ($BASE_PYTHON)."
    "$BASE_PYTHON" -m venv --clear "$VENV" \
      || fail "$BASE_PYTHON could not make $VENV; see above."
  fi
  PYTHON="$VENV/bin/python"

  missing=()
  for file in "$@"; do
    if [[ "$(cksum < "$ROOT/$file")" \
      != "$(cat "$(stamp_of "$file")" 2> /dev/null)" ]]; then
      missing+=(-r "$ROOT/$file")
    fi
  done
  if [[ ${#missing[@]} == 0 ]]; then
    return
  fi

  say "Installing the packages of $* (once: up to 700 MB to download, 2 GB on" \
    'disk, a minute or more).'
  touch "$UNFINISHED"
  # The pip that comes with Python 3.10 takes minutes to resolve what newer
  # ones resolve in seconds.
  pip_install --upgrade pip
  pip_install "${missing[@]}"
  mkdir -p "$STAMPS"
  for file in "$@"; do
    cksum < "$ROOT/$file" > "$(stamp_of "$file")"
  done
  rm "$UNFINISHED"
  say "Ready after $((SECONDS - started)) s."
}
