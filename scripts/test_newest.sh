#!/bin/sh
# Runs the tests with the newest release of every dependency, whatever the pins say:
#
#     sh scripts/test_newest.sh [arguments of pytest]
#
# Makes .venv-newest from nothing (several GB, mostly CUDA libraries; VENV names another folder), prints each pin and the
# release that pip took, which is the newest that goes with the others, and runs the tests. Python: PYTHON, else python3.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-newest}
pins=$(sed 's/[[:space:]]*#.*//' requirements.txt requirements-dev.txt)
echo "== making $venv with the newest releases"
"${PYTHON:-python3}" -m venv --clear "$venv"
python=$venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check $(echo "$pins" | sed 's/==.*//')
"$python" -c '
import sys
from importlib.metadata import version
print(f"{sys.version.split()[0]:>40} Python")
for pin in sys.argv[1:]:
    name, pinned = pin.split("==")
    print(f"{name:<26}{pinned:>14} -> {version(name)}")
' $pins
echo "== pytest"
# What a new release warns of is listed, but does not fail a test as with the pins.
OMP_NUM_THREADS=1 "$python" -m pytest -n auto -W default "$@"
