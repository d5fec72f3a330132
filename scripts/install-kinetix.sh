#!/usr/bin/env bash
# Installs Kinetix into the project's virtual environment (or PYTHON=/path/to/python scripts/install-kinetix.sh).
#
# Kinetix is no extra of pyproject.toml: its own pin of jax is too narrow for ours, so pip would refuse the two together,
# and of its dependencies jax2d 1.0.1 fails with the jax of today. --no-deps leaves its pins aside; what it needs at run
# time is named here, and constraints.txt keeps everything else as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
"$PYTHON" -m pip install --no-deps kinetix-env==3.0.2 jaxgl==1.0.1 jax2d==1.0.2
"$PYTHON" -m pip install -c constraints.txt omegaconf grain zarr
