#!/usr/bin/env bash
# What needs a GPU, in two commands of at most 9 minutes: tests, races, timings, rooflines, the scale table; and, with
# "embedding" as the second word, a 7B model's embeddings and a whole round.
# Appends to bench/results/<gpu>.jsonl, and writes the table and the picture of the run beside it. Runs with what is
# installed (nvcc among it) and the wheels in $DIVERSEEVOL_WHEELS:
#   bash bench/device.sh [RESULTS_FOLDER [embedding]]
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
  timeout "$limit" "$@" 2>&1 | tail -40
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
  step "wheels" 20 python -m pip install --quiet --no-index --no-deps "$DIVERSEEVOL_WHEELS"/*.whl
fi
# Without nvcc there is still Triton to measure: the failed step is said, and the build goes on without.
command -v nvcc >/dev/null || { echo "no nvcc on PATH: the CUDA C++ kernels are left out" >&2; failed=1; }
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
step "build" 70 env DEF_CUDA_ARCHS="${architecture/%90/90a}" DEF_CUDA="$(command -v nvcc >/dev/null && echo on || echo off)" \
  python -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
if [ "${2:-}" = embedding ]; then
  step "embedding" 440 python bench/device_embedding.py --output "$results"
  exit $failed
fi
step "env" 10 python -m diverseevol_fast env
tests=()
for name in gpu triton cuda cuda_build pooling stream traversal logits host_rows; do
  [ -f "tests/test_$name.py" ] && tests+=("tests/test_$name.py")
done
# Triton compiles a kernel anew for most shapes: several processes, where pytest-xdist is there.
workers=$(python -c 'import xdist' 2>/dev/null && echo "-n 6" || true)
before=$failed
failed=0
# What is compiled ahead of time for other GPUs needs none: make test does it. Unquoted: two words, or none.
step "tests" 140 python -m pytest -q -p no:cacheprovider $workers -k "not compiles_for_gpus" "${tests[@]}"
for tool in memcheck racecheck; do
  step "$tool" 30 compute-sanitizer --tool "$tool" --error-exitcode 9 python bench/device.py small
done
unproven=$([ $failed -eq 0 ] || echo "--unproven")
step "measure" 210 python bench/device.py measure --output "$results" $unproven
exit $((failed | before))
