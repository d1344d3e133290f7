#!/usr/bin/env bash
# ./run_tests.sh: style, unit tests, then every notebook as committed (the toy preset). Sets up .venv on the first call.
# Linux, Python 3.11+, two cores, 8 GB of memory, no GPU, no data: at most 40 minutes including the installation.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
source .ci/setup.sh
export OMP_NUM_THREADS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8

scratch=$(mktemp -d)  # the notebooks compute everything anew and leave results/ as it is
trap 'rm -rf "$scratch"' EXIT

"$python" -m ruff check .
"$python" -m pytest --durations=15 tests
TWINS_RESULTS=$scratch "$python" -m pytest -x --nbval-lax --nbval-current-env --nbval-cell-timeout 600 --durations=5 notebooks
