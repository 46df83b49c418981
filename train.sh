#!/bin/sh
# Nine runs on the paper's sets: Kvasir, Shenzhen and BU-SUC, each with S_R (02), S_E (08) and S_DE (DE) masks.
#
#     sh train.sh [flags for every run, such as --method ce or --recipe contour]
#
# Datasets are looked for in DATA_ROOT (default: data), and runs written to model, of the folder where it is called. Safe
# to run again: complete runs are not repeated and broken ones are continued. PYTHON chooses the interpreter (default:
# that of .venv beside this script, else python).
set -u
here=$(dirname "$0")
data_root=${DATA_ROOT:-data}
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ -x "$here/.venv/bin/python" ] && PYTHON=$here/.venv/bin/python
fi
found=0
failed=""

run() { # dataset noise_type [flags]; ratecp, jitter and, where it is used, tau are the script's own for these
    dataset=$1 noise_type=$2
    shift 2
    echo "== $dataset, noise $noise_type"
    "$PYTHON" "$here/train_GSD-Net.py" --datasets "$dataset" --noise_type "$noise_type" \
        --data_root "$data_root" --resume "$@" &
    child=$!
    trap 'kill -TERM $child' HUP INT TERM # or a signal to this script would leave the run behind
    wait $child
    status=$?
    while kill -0 $child 2>/dev/null; do # a signal ends the wait, the run in its own time
        wait $child
        status=$?
    done
    trap - HUP INT TERM
    [ $status -ge 130 ] && exit $status # Ctrl-C, or another signal, stops all of them
    [ $status -eq 0 ] || failed="$failed $dataset/$noise_type"
}

there() { # dataset
    if ls "$data_root" 2>/dev/null | grep -qix "$1"; then # as --datasets finds it: whatever its case
        found=$((found + 1))
    else
        echo "== $1: skipped, there is no folder $data_root/$1"
        return 1
    fi
}

if there Kvasir; then
    run kvasir 02 "$@"
    run kvasir 08 "$@"
    run kvasir DE "$@"
fi
if there shenzhen; then
    run shenzhen 02 "$@"
    run shenzhen 08 "$@"
    run shenzhen DE "$@"
fi
if there BUSUC; then
    run BUSUC 02 "$@"
    run BUSUC 08 "$@"
    run BUSUC DE "$@"
fi

if [ "$found" -eq 0 ]; then
    echo "error: none of the datasets is in $data_root; README.md says how to lay them out" >&2
    exit 2
fi
if [ -n "$failed" ]; then
    echo "error: these runs failed:$failed" >&2
    exit 1
fi
