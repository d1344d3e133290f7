#!/usr/bin/env bash
# ./run_tests.sh: style, unit tests, a few of them as on an older processor, then every notebook as committed (the toy preset).
# Sets up .venv on the first call. Linux, Python 3.11+, two cores, 8 GB of memory, no GPU, no data: at most 25 minutes with the
# installation. OLDER_CPUS=no leaves out the older processors.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
source .ci/setup.sh
export OMP_NUM_THREADS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
cores=$(env -u OMP_NUM_THREADS nproc)  # which minds that variable

scratch=$(mktemp -d)  # the notebooks compute everything anew and leave results/ as it is
trap 'rm -rf "$scratch"' EXIT

"$python" -m ruff check .
"$python" -m pytest -n "$cores" --durations=15 tests
notebooks() {
  TWINS_RESULTS=$scratch/results "$python" -m pytest -x --nbval-lax --nbval-current-env --nbval-cell-timeout 900 --durations=5 notebooks
}
if [[ ${OLDER_CPUS:-} == no ]]; then
  notebooks
else  # side by side: notebooks take one core
  notebooks >"$scratch/notebooks.log" 2>&1 &
  older=0 status=0
  .ci/older_cpus.sh short || older=$?
  wait $! || status=$?
  cat "$scratch/notebooks.log"
  exit $(( older ? older : status ))
fi
