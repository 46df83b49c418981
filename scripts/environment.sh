# Sourced by demo.sh and test.sh from the top of the repository: makes .venv from the files named in $requirements, once
# for each version of them. PYTHON chooses the interpreter (default python3).
wanted=$(cat $requirements | cksum)
if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then
    echo "== the environment .venv is ready"
else
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python 3.11 or newer is needed; name it, for example PYTHON=python3.11 sh demo.sh" >&2
        exit 2
    }
    echo "== making the environment .venv from $requirements (some minutes the first time)"
    "${PYTHON:-python3}" -m venv .venv
    for file in $requirements; do
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$file"
    done
    echo "$wanted" > .venv/installed
fi
