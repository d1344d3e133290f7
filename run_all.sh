#!/usr/bin/env bash
# From nothing to rendered notebooks:  ./run_all.sh [toy|small|medium|paper] [NN…] [--params FOLDER] [--results FOLDER]
#                                                    [--force] [--keep-going] [--dry-run]
#
#   preset   data and model                               hardware                    time
#   toy      images inside the installed packages         two CPU cores               about 6 minutes, once installed
#   small    real 32×32 data, thin ResNet                 two CPU cores               hours for each notebook
#   medium   real 32×32 data, ResNet-18                   one GPU, 16 GB or more      hours in all
#   paper    ImageNet-robust ResNet-50 at 224 pixels      GPUs with 40 GB or more     as --dry-run estimates
#
# Without a preset: medium where CUDA is found, toy elsewhere. Without numbers: every notebook; "01 03" means those two.
#   --params       a study of your own in place of a preset: the folder with its parameter files (python -m twinslib study new)
#   --results      keep results there, not in results/
#   --force        render again where neither the notebook, its parameters, the code nor the rows have changed
#   --keep-going   go on with the next notebook after a failure (the exit status still says that something failed)
#                  a run that diverges is no failure: it is a result, shown as such, and everything is rendered
#   --dry-run      print the runs, their number and the estimated cost; compute nothing
#
# Setting up: .venv on the first call (needs Python 3.11+ with venv, about 8 GB of disk), or TWINS_PYTHON=python to use
# the active environment. Images of all presets but toy are looked for in TWINS_DATA (README, section Data).
# Results: results/<preset>/NN_name.ipynb and .html, tables and figures beside them; of a study in results/<its name>/.
# Killed at any moment, the same command goes on where it stopped.
set -euo pipefail
called_from=$PWD
for variable in TWINS_DATA TWINS_RESULTS; do  # as they are meant where it is called
  [[ ${!variable:-/} == [/~]* ]] || export "$variable=$called_from/${!variable}"
done
cd "$(dirname "$(readlink -f "$0")")"  # also where it is called through a symbolic link

usage() {
  printf 'run_all.sh: %s; usage: ./run_all.sh [toy|small|medium|paper] [NN…] [--params FOLDER] [--results FOLDER] %s\n' \
    "$1" '[--force] [--keep-going] [--dry-run]' >&2
  exit 2
}

seen=' ' preset= which=() numbers=() render_flags=() keep_going= dry_run=
while (($#)); do
  argument=$1
  shift
  case $argument in
    toy | small | medium | paper)
      [[ -z $preset ]] || usage "expected one preset, got '$preset' and '$argument'"
      preset=$argument which+=(--preset "$argument") ;;
    --params | --results)
      (($#)) || usage "expected a folder after $argument, got nothing"
      folder=$1
      shift
      [[ $folder == /* ]] || folder=$called_from/$folder
      which+=("$argument" "$folder")
      if [[ $argument == --params ]]; then
        [[ -z $preset ]] || usage "expected one preset or study, got '$preset' and '$folder'"
        [[ -d $folder ]] || usage "expected the folder of a study after --params, got '$folder'"
        preset=$folder
      fi ;;
    [0-9][0-9])
      compgen -G "notebooks/${argument}_*.ipynb" >/dev/null || usage "expected a notebook of notebooks/, got number '$argument'"
      numbers+=("$argument") ;;
    --force) render_flags+=(--force) ;;
    --keep-going) keep_going=1 render_flags+=(--keep-going) ;;
    --dry-run) dry_run=1 ;;
    *) usage "expected a preset (toy, small, medium, paper), a notebook number such as 01, or an option, got '$argument'" ;;
  esac
  [[ $seen != *" $argument "* ]] || usage "expected each argument once, got '$argument' twice"
  seen+="$argument "
done

source .ci/setup.sh
if [[ -z $preset ]]; then
  preset=$("$python" -c 'import torch; print("medium" if torch.cuda.is_available() else "toy")')
  which+=(--preset "$preset")
  echo "preset $preset" >&2
fi

export CUBLAS_WORKSPACE_CONFIG=:4096:8
if [[ $preset == toy ]]; then export OMP_NUM_THREADS=1; fi  # the same rows to the byte, whatever the number of cores

status=0  # the sweep computes what is missing and refuses unknown parameters first; 3: stopped by a signal
"$python" -m twinslib sweep "${which[@]}" ${numbers:+--only "${numbers[@]}"} ${dry_run:+--dry-run} || status=$?
if [[ -n $dry_run || $status -eq 3 || ($status -ne 0 && -z $keep_going) ]]; then exit "$status"; fi
"$python" -m twinslib render "${which[@]}" "${render_flags[@]}" "${numbers[@]}" || status=$?
exit "$status"
