#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most 9 minutes: tests, races, timings, rooflines, the scale table.
# Appends to bench/results/<gpu>.jsonl and draws it. Runs with what is installed and the wheels in $DIVERSEEVOL_WHEELS:
#   bash bench/device.sh [RESULTS_FOLDER]
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-bench/results}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tail -25
  local status=${PIPESTATUS[0]}
  echo "== $name: exit $status after $((SECONDS - began)) s"
  [ "$status" -eq 0 ] || failed=1
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader ||
  { echo "no NVIDIA GPU answers here: this needs one" >&2; exit 2; }
# An environment of its own that sees the packages of python3's, which may itself be a virtual environment.
packages=$(python3 -c 'import site; print("\n".join(site.getsitepackages()))')
python3 -m venv --without-pip "$work/venv"
export PATH="$work/venv/bin:$PATH"
echo "$packages" >"$(python -c 'import site; print(site.getsitepackages()[0])')/parent.pth"
if [ -n "${DIVERSEEVOL_WHEELS:-}" ]; then
  step "wheels" 60 python -m pip install --quiet --no-index --no-deps "$DIVERSEEVOL_WHEELS"/*.whl
fi
step "build" 100 python -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
step "tests" 150 python -m pytest -q -x -p no:cacheprovider tests/test_triton.py tests/test_pooling.py tests/test_stream.py
for tool in memcheck racecheck; do
  step "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 python bench/device.py small
done
step "measure" 200 python bench/device.py measure --output "$results"
exit $failed
