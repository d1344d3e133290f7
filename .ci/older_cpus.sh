#!/usr/bin/env bash
# .ci/older_cpus.sh [short|whole]: twins on each older instruction set that this processor can imitate. Sets up .venv on the first call.
#   short  (default) one toy sweep and the tests that compare numbers: part of ./run_tests.sh
#   whole  ./run_all.sh toy, then every test and notebook
# Imitated by the environment variables that torch and oneDNN read; on other processors than x86 there is nothing to imitate.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
[[ ${1:-short} == short || ${1:-} == whole ]] || { echo "usage: .ci/older_cpus.sh [short|whole], got '$1'" >&2; exit 2; }
source .ci/setup.sh
export OMP_NUM_THREADS=1 CUBLAS_WORKSPACE_CONFIG=:4096:8

older=()  # oneDNN's bound, then that of torch's own kernels; the bound that is the processor's own is left out
if [[ $(uname -m) == x86_64 ]]; then
  older=("SSE41 default")
  grep -qw avx512f /proc/cpuinfo && older+=("AVX2 avx2")
  grep -qwE 'avx512_bf16|amx_bf16' /proc/cpuinfo && older+=("AVX512_CORE avx512")
fi

for pair in "${older[@]}"; do
  read -r onednn aten <<<"$pair"
  echo "oneDNN at most $onednn, torch at most $aten" >&2
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  (
    export ONEDNN_MAX_CPU_ISA=$onednn ATEN_CPU_CAPABILITY=$aten TWINS_RESULTS=$scratch
    if [[ ${1:-short} == whole ]]; then
      TWINS_PYTHON=$python ./run_all.sh toy
      OLDER_CPUS=no TWINS_PYTHON=$python ./run_tests.sh
    else
      "$python" -m twinslib sweep --preset toy --only 06
      "$python" -m pytest -q -n "$(env -u OMP_NUM_THREADS nproc)" tests/nets/test_{arithmetic,norms}.py tests/train/test_loop.py \
        tests/base/test_sequential.py tests/test_results.py
    fi
  )
  rm -rf "$scratch"
done
