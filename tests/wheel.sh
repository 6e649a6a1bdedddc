#!/usr/bin/env bash
# Builds the wheel, installs it in a venv of its own, and uses it from a folder outside the checkout.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
outside=$(mktemp -d)
trap 'rm -rf "$outside"' EXIT

export PIP_CONSTRAINT="$checkout/constraints.txt"
# The wheel has the CUDA kernels wherever there is nvcc: for one GPU, which takes every source, and none needs to be here.
if command -v nvcc >/dev/null; then export DEF_CUDA=on DEF_CUDA_ARCHS=90a; fi
"$checkout/.venv/bin/python" -m build --wheel --outdir "$outside/dist" "$checkout" >"$outside/build.log" 2>&1 ||
  { cat "$outside/build.log"; exit 1; }
python3 -m venv "$outside/venv"
"$outside/venv/bin/pip" install --quiet "$outside"/dist/*.whl pytest

cp -r "$checkout"/tests/{conftest.py,support,ops/test_masked_mean_pool.py,selection/test_kcenter.py} "$outside"
cd "$outside"
venv/bin/python - "$checkout" <<'PY'
import os
import sys
import diverseevol_fast
from diverseevol_fast.ops import backends, kernels

home = diverseevol_fast.__file__
sys.exit(
    (home.startswith(sys.argv[1]) and f"imported from the checkout: {home}")
    or backends.native_unavailable()
    or (os.environ.get("DEF_CUDA") == "on" and backends.cuda_unavailable())
    or (not kernels.preference("min_sqdist", "float32", (9, 0)) and "the wheel has no order of preference")
    or 0
)
PY
venv/bin/diverseevol env
venv/bin/python -m pytest -q -p no:cacheprovider test_masked_mean_pool.py test_kcenter.py
