#!/bin/sh
# Sets up .venv and runs the style check, the type check and the tests: sh test.sh [arguments of pytest]
set -eu
cd "$(dirname "$0")"
requirements="requirements.txt requirements-dev.txt"
. scripts/environment.sh
echo "== ruff"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
echo "== mypy"
.venv/bin/python -m mypy
echo "== pytest"
# One thread a process: the processes share the cores. Each begins with a stretch of neighbouring tests, which share what
# is prepared for a module, and takes over from the others when it is done.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist worksteal "$@"
