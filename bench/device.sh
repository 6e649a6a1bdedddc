#!/usr/bin/env bash
# What needs a GPU, in pieces of at most 7 minutes, each useful alone:
#   bash bench/device.sh check | measure | embedding | experiment [RESULTS_FOLDER]
# check: builds, checks the kernels as a user's first call does and then on large problems, times one shape of each, runs
# the tests on the GPU.
# measure: races and bad accesses, then all timings, whole selections, other projects' kernels, hardware counters.
# embedding: a 7B model's embeddings, and one whole round. experiment: K-Center, K-Center with lazy rounds, and random pools
# of a pretrained model, at the paper's size, side by side.
# Lines go to RESULTS_FOLDER/<gpu>.jsonl (bench/results) as they come, what is printed to RESULTS_FOLDER/<piece>.log: a
# machine that is taken away costs the step that it was at. Runs with what is installed: python3 with torch, triton,
# pybind11, cmake, ninja, setuptools; nvcc, compute-sanitizer, ncu and pytest-xdist where they are there. git is not
# needed: DEF_COMMIT names the commit. embedding takes its rows from bench/cache/instruct_15k.jsonl.gz where that is there,
# else they are generated; experiment needs them, and the model: bench/device/device_experiment.py says how it gets there.
set -uo pipefail
cd "$(dirname "$0")/.."
piece=${1:-}
case $piece in
  check | measure | embedding | experiment) ;;
  *) echo "usage: bash bench/device.sh check | measure | embedding | experiment [RESULTS_FOLDER]" >&2; exit 2 ;;
esac
results=$(mkdir -p "${2:-bench/results}" && cd "${2:-bench/results}" && pwd) || exit 2
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; then
  echo "no NVIDIA GPU answers here: bench/device.sh $piece needs one" >&2
  exit 2
fi
exec > >(tee -a "$results/$piece.log") 2>&1
failed=0
declare -A limits=([check]=285 [measure]=330 [embedding]=300 [experiment]=420)
limit_of_all=${limits[$piece]}  # seconds

step() {  # step NAME SECONDS COMMAND...: a step that fails or takes too long is said, and the next one begins
  local name=$1 limit=$2 began=$SECONDS left=$((limit_of_all - SECONDS))
  shift 2
  if [ "$left" -lt 10 ]; then
    echo "== $name: left out, the $limit_of_all s are over"
    failed=1
    return 1
  fi
  [ "$limit" -le "$left" ] || limit=$left
  echo "== $name"
  timeout -k 5 "$limit" "$@"
  local status=$?
  echo "== $name: exit $status after $((SECONDS - began)) s"
  [ "$status" -eq 0 ] || failed=1
  return "$status"
}

# An environment of its own that sees the packages of python3's, which may itself be a virtual environment.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=$(python3 -c 'import site; print("\n".join(site.getsitepackages()))')
python3 -m venv --without-pip "$work/venv"
export PATH="$work/venv/bin:$PATH" PYTHONUNBUFFERED=1
echo "$packages" >"$(python -c 'import site; print(site.getsitepackages()[0])')/parent.pth"

build() {  # build CUDA(on, off) SECONDS
  local architecture
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
  step "build, CUDA $1" "$2" env DEF_CUDA="$1" DEF_CUDA_ARCHS="${architecture/%90/90a}" \
    python -m pip install --quiet --no-index --no-deps --no-build-isolation --editable .
}

# Where CUDA's kernels do not compile, Triton's are measured all the same.
if ! command -v nvcc >/dev/null || ! build on 100; then build off 40; fi
case $piece in
  check)
    step "self-check, as a user's first call makes it" 50 python -m diverseevol_fast env --check
    step "check" 75 python bench/device/device.py check --output "$results"
    step "first timings" 45 python bench/device/device.py measure --brief --seconds 35 --output "$results"
    # Triton compiles a kernel anew for most shapes: several processes, where pytest-xdist is there. What is compiled
    # ahead of time for other GPUs needs none. Unquoted: two words, or none.
    workers=$(python -c 'import xdist' 2>/dev/null && echo "-n 12" || true)
    step "tests" 90 python -m pytest -v -p no:cacheprovider $workers --timeout 60 -k "not compiles_for_gpus" \
      tests/ops/test_{gpu,triton,cuda,self_check,check_problems,audit,masked_mean_pool,logit_stats}.py \
      tests/selection/test_{stream,host_rows,traversal}.py
    ;;
  measure)
    if command -v compute-sanitizer >/dev/null; then
      step "memcheck" 40 python bench/device/device.py sanitize memcheck --seconds 35 --output "$results"
      step "racecheck" 40 python bench/device/device.py sanitize racecheck --seconds 35 --output "$results"
    fi
    step "measure" 150 python bench/device/device.py measure --seconds 135 --output "$results"
    if command -v ncu >/dev/null; then
      # One launch of each of the kernels that matter, on shapes of bench/device/device_cases.py.
      for unit in "masked_mean_pool | 0 | cuda masked_mean_pool bfloat16" "min_sqdist | 0 | cuda min_sqdist bfloat16" \
        "min_sqdist | 1 | cuda min_sqdist_hopper bfloat16" "pick_block | 0 | cuda pick_block float32"; do
        kernel=$(echo "${unit##*| }" | cut -d' ' -f2)
        step "counters of $kernel" 25 ncu --clock-control none --set detailed --kernel-name-base function \
          --kernel-name "regex:^${kernel}_kernel$" --launch-count 1 \
          python bench/device/device.py child measure "op | $unit"
      done
    fi
    ;;
  embedding) step "embedding" 230 python bench/device/device_embedding.py --output "$results" ;;
  experiment) step "experiment" 390 python bench/device/device_experiment.py --seconds 215 --output "$results" ;;
esac
exit $failed
