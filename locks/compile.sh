#!/usr/bin/env bash
# Writes the lock files beside it from pyproject.toml and constraints.txt: `make lock`, with uv on the path.
#
#   build.txt     what builds selfcal, and packages that have no wheel
#   packages.txt  what `make` installs, torch and what only torch brings left out
#   docs.txt, mutation.txt, puma.txt   what these extras need beyond packages.txt
set -euo pipefail
cd "$(dirname "$0")/.."

compiled() { # every package with the hashes of all its files
    uv pip compile -q --universal --python-version 3.11.5 --generate-hashes --no-header --no-annotate \
        --constraints constraints.txt "$@"
}
without() { # $1: regular expression of names; packages are a line that begins with their name, and those below
    awk -v left_out="^($1)==" '/^[a-zA-Z0-9]/ {keep = $0 !~ left_out} keep'
}
names() { sed -nE 's/^([a-zA-Z0-9._-]+)==.*/\1/p' "$1" | paste -sd '|'; }

by_torch='torch|triton|nvidia-[^=]*|cuda-[^=]*' # its builds for CPU and GPU differ
extras=(generate onnx hepdata cabinetry chain dask browser dev)
compiled --group build >locks/build.txt
compiled "${extras[@]/#/--extra=}" pyproject.toml | without "$by_torch" >locks/packages.txt
for extra in docs mutation puma; do
    compiled --extra "$extra" pyproject.toml | without "$by_torch|$(names locks/packages.txt)" >"locks/$extra.txt"
done
