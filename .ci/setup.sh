# Sourced by run_all.sh and run_tests.sh from the repository root. Leaves $python: an interpreter that can run twins.
#   TWINS_PYTHON=python  use that interpreter (an active conda or virtual environment) and install nothing
#   otherwise            .venv here, from requirements.lock (about 3 GB to download, once); unchanged files: nothing to do
export JUPYTER_PREFER_ENV_PATH=1  # the kernel "python3" is this environment's, not one left in the home folder

fail() { printf '%s: %s\n' "${0##*/}" "$1" >&2; exit 1; }

use_own_environment() {
  python=$(command -v "$TWINS_PYTHON") || fail "expected TWINS_PYTHON to be a Python interpreter, got '$TWINS_PYTHON'"
  "$python" .ci/check_environment.py || fail "TWINS_PYTHON=$TWINS_PYTHON cannot run twins (see above); unset it to let this \
script set up .venv, or run: $TWINS_PYTHON -m pip install -r requirements.lock -e ."
}

find_base_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then base=$candidate; return; fi
  done
  fail "expected Python 3.11 or newer, got $(python3 --version 2>&1 || true); install it, or use environment.yml"
}

install_locked_environment() {
  local base stamp=.venv/twins-setup
  python=$PWD/.venv/bin/python
  if { pwd; cat requirements.lock pyproject.toml; } | cmp -s - "$stamp" && "$python" -c '' 2>/dev/null; then return; fi
  find_base_python
  if ! "$python" -m pip --version >/dev/null 2>&1; then  # absent, half made, or its base Python is gone
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
      fail "expected $base with venv and pip, got one without ensurepip; install python3-venv, or use environment.yml"
    "$base" -m venv --clear .venv || fail "could not create .venv; see the message above"
  fi
  echo "setting up .venv from requirements.lock (once; about 3 GB)" >&2
  rm -f "$stamp"
  # Python compiles what is imported; all that is installed would take a minute more
  "$python" -m pip install --disable-pip-version-check --no-input --no-compile -r requirements.lock >&2 &&
    "$python" -m pip install --disable-pip-version-check --no-input --no-build-isolation --no-deps -e . >&2 ||
    fail "installing requirements.lock failed; see the message above and run this again, it goes on where it stopped"
  { pwd; cat requirements.lock pyproject.toml; } >"$stamp"
}

if [[ -n ${TWINS_PYTHON:-} ]]; then use_own_environment; else install_locked_environment; fi
