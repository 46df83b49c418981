# Sourced by demo.sh and test.sh from the top of the repository: makes .venv from the pinned requirements, once for
# each version of the files named. Usage: . scripts/environment.sh requirements.txt ...
# PYTHON chooses the interpreter (default python3).
wanted=$(cat "$@" | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then
    echo "== the environment .venv is ready"
else
    echo "== making the environment .venv and installing $* (a few minutes the first time)"
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python 3.11 or newer is needed; set PYTHON to it, for example PYTHON=python3.11 sh demo.sh" >&2
        exit 2
    }
    "${PYTHON:-python3}" -m venv .venv
    for file in "$@"; do
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$file"
    done
    echo "$wanted" > .venv/installed
fi
