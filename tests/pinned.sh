#!/usr/bin/env bash
# Runs the selection's tests with the packages of another environment, older ones than the commands take:
#   bash tests/pinned.sh PYTHON
# PYTHON is that environment's: Python 3.10 with torch 2.0, as the public DiverseEvol pins them. Nothing is installed into it.
set -euo pipefail
python=${1:?usage: bash tests/pinned.sh PYTHON}
checkout=$(cd "$(dirname "$0")/.." && pwd)
outside=$(mktemp -d)
trap 'rm -rf "$outside"' EXIT

"$python" -m pip install --quiet --no-deps --ignore-requires-python --target "$outside/packages" "$checkout"
"$python" -m pip install --quiet --target "$outside/tools" pytest pytest-timeout hypothesis
cp -r "$checkout"/tests/{conftest.py,support,compat/test_adapters.py,ops/test_masked_mean_pool.py} "$checkout/bench/peers.py" "$outside"
cp "$checkout"/tests/selection/test_{kcenter,traversal,stream}.py "$outside"
cd "$outside"
export PYTHONPATH="$outside/packages:$outside/tools"
"$python" - <<'PY'
import platform
import sys

import torch

from diverseevol_fast.ops import backends

print(f"Python {platform.python_version()}, torch {torch.__version__}")
sys.exit(backends.native_unavailable())
PY
"$python" -m pytest -q -p no:cacheprovider
