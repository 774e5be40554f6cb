#!/bin/sh
# Measure a GPU: benchmarks/gpu.sh [--wheels DIR] [options of gpu.py]
# With --wheels nothing is downloaded: DIR holds the wheels of torch and of requirements.txt, the
# small model's among them, which are installed into an environment beside this file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=python
if [ "${1:-}" = --wheels ]; then
    [ -d "${2:-}" ] || { echo "--wheels ${2:-}: no such folder; name one with wheels" >&2; exit 2; }
    wheels=$2
    shift 2
    python3 -m venv "$here/.gpu-environment"
    python=$here/.gpu-environment/bin/python
    "$python" -m pip install -q --no-index --find-links "$wheels" torch
    "$python" -m pip install -q --no-index --find-links "$wheels" --no-deps -r "$here/../requirements.txt"
fi
exec "$python" "$here/gpu.py" "$@"
