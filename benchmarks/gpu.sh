#!/bin/sh
# What a graphics processor does with packed models, in at most eight minutes: one JSON file.
#
#     sh benchmarks/gpu.sh [OUT.json] [WHEELS]
#
# Needs Python with PyTorch for the device, and this repository. WHEELS is a folder with wheels of this package's
# dependencies, for a machine without a network (make it on another with `pip download -d WHEELS .`); without it, the
# packages that are installed are used.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/benchmarks/results/gpu.json}
python=${PYTHON:-python3}
if [ -n "${2:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
    export PYTHONPATH="$site"
fi
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$root/benchmarks/gpu.py" --out "$out"
