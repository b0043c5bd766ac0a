#!/bin/bash
# Creates a virtual environment; sourced by quickstart.sh, test.sh and CI:
#
#   prepare_environment FILE...   # then "$PYTHON" is its interpreter.
#
# VENV=... sets its directory, by default .venv in the checkout. PYTHON=... sets
# the Python for it, by default the newest supported one found.

source "$(dirname "${BASH_SOURCE[0]}")/configs.sh"

VENV="${VENV:-$ROOT/.venv}"

# The versions of Python that the pinned packages have wheels for, best first.
SUPPORTED=(3.13 3.12 3.11 3.10)

# Files in the environment: a stamp per requirements file, with the checksum of
# what was installed, and UNFINISHED while pip runs. A package whose
# installation was interrupted can look installed, so the environment is then
# created again.
STAMPS="$VENV/requirements-stamps"
UNFINISHED="$VENV/requirements-unfinished"

say() {
  echo "[set-up] $*"
}

fail() {
  echo "[set-up] $*" >&2
  exit 1
}

# Sets PROBED_VERSION, PROBED_PATH and PROBED_LACK to the version and path of an
# interpreter and to what it lacks; fails if it cannot create an environment.
# The path is that of the interpreter behind a virtual environment or a shim.
# The Python code below has to work in any Python, even Python 2.
probe_python() {
  local probed
  PROBED_VERSION='' PROBED_PATH='' PROBED_LACK=''
  probed="$("$1" -c '
import sys
print("%d.%d.%d" % sys.version_info[:3])
print(getattr(sys, "_base_executable", None) or sys.executable)
try:
  import ensurepip, venv
except ImportError:
  print("the venv module (Debian: apt-get install python3-venv)")
else:
  print("")
' 2> /dev/null < /dev/null)" || return 1
  { read -r PROBED_VERSION && read -r PROBED_PATH && read -r PROBED_LACK; } \
    <<< "$probed" || true
  is_supported "$PROBED_VERSION" && [[ -z "$PROBED_LACK" ]]
}

# Prints the result of `probe_python`.
probed() {
  echo "$PROBED_VERSION${PROBED_LACK:+ without $PROBED_LACK}, $PROBED_PATH"
}

is_supported() {
  local version
  for version in "${SUPPORTED[@]}"; do
    [[ "$1" != "$version".* ]] || return 0
  done
  return 1
}

# Prints interpreters that may exist, one per line, in no particular order.
candidate_pythons() {
  local version
  for version in "${SUPPORTED[@]}"; do
    type -aP "python$version" || true
    # Versions that pyenv has installed but does not expose at the moment.
    if command -v pyenv > /dev/null; then
      ls "$(pyenv root)/versions/$version".*/bin/python 2> /dev/null || true
    fi
  done
  type -aP python3 python || true
}

# Prints 'VERSION PATH' of the Pythons that can create an environment, one per
# minor version, newest first.
installed_pythons() {
  local candidate
  while IFS= read -r candidate; do
    if probe_python "$candidate"; then
      echo "$PROBED_VERSION $PROBED_PATH"
    fi
  done < <(candidate_pythons) | sort -t. -k1,1nr -k2,2nr -u
}

# Sets BASE_PYTHON and BASE_VERSION to an interpreter that can create an
# environment, or ends the script.
find_python() {
  local candidate found=''
  if [[ -n "${PYTHON:-}" ]]; then
    if probe_python "$PYTHON"; then
      BASE_VERSION="$PROBED_VERSION"
      BASE_PYTHON="$PROBED_PATH"
      return
    fi
    [[ -z "$PROBED_VERSION" ]] || found="$(probed)"
    say "PYTHON=$PYTHON does not do (${found:-it does not run}); looking for" \
      'another.'
    found=''
  fi
  if read -r BASE_VERSION BASE_PYTHON < <(installed_pythons); then
    return
  fi
  while IFS= read -r candidate; do
    probe_python "$candidate" || true
    if [[ -n "$PROBED_VERSION" && "$found" != *"$(probed)"* ]]; then
      found="${found:+$found; }$(probed)"
    fi
  done < <([[ -z "${PYTHON:-}" ]] || echo "$PYTHON"; candidate_pythons)
  fail 'Python 3.10, 3.11, 3.12 or 3.13 is needed, but found only:' \
    "${found:-no Python at all}. Install one, or name it:" \
    "PYTHON=/path/to/python3.13 scripts/${0##*/}"
}

# Whether the environment works and has the version of $PYTHON, if that is a
# supported one.
is_venv_usable() {
  local version
  [[ ! -e "$UNFINISHED" && -x "$VENV/bin/python" ]] || return 1
  version="$("$VENV/bin/python" -c '
import pip, sys
print("%d.%d.%d" % sys.version_info[:3])' 2> /dev/null)" || return 1
  is_supported "$version" || return 1
  if [[ -n "${PYTHON:-}" ]] && probe_python "$PYTHON"; then
    [[ "${PROBED_VERSION%.*}" == "${version%.*}" ]]
  fi
}

stamp_of() {
  echo "$STAMPS/${1//\//-}"
}

# Runs pip. Shows large downloads and the start of the installation. All output
# goes to a file, the end of which is shown if pip fails.
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

# Creates the environment with the packages of the given requirements files,
# unless it exists already. The files are relative to the checkout. Sets PYTHON.
prepare_environment() {
  local file started=$SECONDS
  local -a missing
  if ! is_venv_usable; then
    find_python
    say "Making ${VENV#"$ROOT/"} with Python $BASE_VERSION ($BASE_PYTHON)."
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
  # The pip of Python 3.10 takes minutes to resolve requirements that newer
  # versions resolve in seconds.
  pip_install --upgrade pip
  pip_install "${missing[@]}"
  mkdir -p "$STAMPS"
  for file in "$@"; do
    cksum < "$ROOT/$file" > "$(stamp_of "$file")"
  done
  rm "$UNFINISHED"
  say "Ready after $((SECONDS - started)) s."
}
