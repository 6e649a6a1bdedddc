"""What a GPU does with the ops: python bench/device.py measure [--output FOLDER] | small

measure: ceilings of the card, every op on every backend, whole selections; checked first, then timed. Appends JSON
lines to FOLDER/<gpu>.jsonl. small: every Triton kernel once on small shapes, for compute-sanitizer; without a GPU too,
with TRITON_INTERPRET=1.
"""

import argparse
import hashlib
import json
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch
import triton

from diverseevol_fast import kcenter
from diverseevol_fast.ops import masked_mean_pool, min_sqdist, pick_block, pool_min_sqdist, reference, update_argmax

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the latter for `small`, in Triton's interpreter


def times(run, seconds: float = 1.0) -> dict[str, float]:
    """20th, 50th and 80th percentile of the seconds that one call takes, on the device's clock."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    taken, until = [], time.perf_counter() + seconds
    while len(taken) < 5 or (time.perf_counter() < until and len(taken) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    fifths = statistics.quantiles(taken, n=5)
    return {"p20": fifths[0], "p50": statistics.median(taken), "p80": fifths[3]}


def ceilings() -> dict[str, float]:
    """The card's measured rates: copy and read in bytes/s, large products in FLOP/s."""
    big = torch.empty(1 << 30, dtype=torch.bfloat16, device=DEVICE).normal_()
    other = torch.empty_like(big)
    a = torch.randn(8192, 8192, device=DEVICE)
    b = a.bfloat16()
    torch.backends.cuda.matmul.allow_tf32 = True
    flops = 2 * 8192**3
    rates = {
        "copy_bytes_per_second": 2 * big.nbytes / times(lambda: other.copy_(big))["p50"],
        "read_bytes_per_second": big.nbytes / times(lambda: big.sum())["p50"],
        "bfloat16_flops": flops / times(lambda: b @ b)["p50"],
        "tf32_flops": flops / times(lambda: a @ a)["p50"],
    }
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def pooling_case(batch: int, tokens: int, dim: int, dtype: torch.dtype):
    hidden = torch.randn(batch, tokens, dim, device=DEVICE).to(dtype)
    mask = torch.arange(tokens, device=DEVICE) < torch.randint(tokens // 3, tokens + 1, (batch, 1), device=DEVICE)
    expected = reference.masked_mean_pool(hidden, mask)

    def eager():
        return (hidden * mask[:, :, None]).sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)

    def ours():
        return masked_mean_pool(hidden, mask, backend="triton")

    def check(run):
        return bool((run() - expected).abs().max() < (1e-5 if run is ours or dtype == torch.float32 else 1e-2))

    read = int(mask.sum()) * dim * hidden.element_size()
    yield "eager", eager, check, {"bytes": read}
    yield "triton", ours, check, {"bytes": read}


def screening_case(n: int, dim: int, count: int, dtype: torch.dtype):
    x = torch.randn(n, dim, device=DEVICE).to(dtype)
    centers, offset = x[:count].float(), x[:4096].float().mean(dim=0)
    exact = torch.full((512,), float("inf"), device=DEVICE)
    reference.min_sqdist(x[-512:], centers, exact)

    points, squares = centers.to(dtype), (centers**2).sum(1).to(dtype)

    def eager():
        return (squares - 2 * (x @ points.T)).min(dim=1).values + x.float().square().sum(1)

    def ours():
        bound = torch.full((n,), float("inf"), device=DEVICE)
        min_sqdist(x, centers, offset, bound, backend="triton")
        return bound

    def check(run):
        off = run()[-512:] - exact
        return bool((off.abs() < 0.05 * exact).all() and (run is eager or (off >= 0).all()))

    work = {"bytes": x.nbytes, "flops": 2 * n * dim * count}
    yield "eager", eager, check, work
    yield "triton", ours, check, work


def fused_case(batch: int, tokens: int, dim: int, count: int):
    hidden = torch.randn(batch, tokens, dim, device=DEVICE).bfloat16()
    mask = torch.arange(tokens, device=DEVICE) < torch.randint(tokens // 3, tokens + 1, (batch, 1), device=DEVICE)
    centers = torch.randn(count, dim, device=DEVICE)
    offset, expected = centers.mean(dim=0), reference.masked_mean_pool(hidden, mask)

    def apart():
        bound = torch.full((batch,), float("inf"), device=DEVICE)
        pooled = masked_mean_pool(hidden, mask, backend="triton")
        min_sqdist(pooled, centers, offset, bound, backend="triton")
        return pooled, bound

    def together():
        bound = torch.full((batch,), float("inf"), device=DEVICE)
        return pool_min_sqdist(hidden, mask, centers=centers, offset=offset, bound=bound, backend="triton"), bound

    def check(run):
        pooled, bound = run()
        exact = torch.full((batch,), float("inf"), device=DEVICE)
        reference.min_sqdist(pooled, centers, exact)
        return bool((pooled - expected).abs().max() < 1e-5 and (bound >= exact).all())

    work = {"bytes": int(mask.sum()) * dim * 2}
    yield "triton, two launches", apart, check, work
    yield "triton", together, check, work


def streaming_case(n: int, dim: int):
    x = torch.randn(n, dim, device=DEVICE)

    def run(backend):
        nearest = torch.full((n,), float("inf"), dtype=torch.float64, device=DEVICE)
        return update_argmax(x, x[0], nearest, backend=backend)

    expected = run("reference")
    for backend in ("reference", "triton"):
        yield backend, lambda backend=backend: run(backend), lambda call: call() == expected, {"bytes": x.nbytes}


def block_case(size: int, dim: int, count: int, picks: int):
    x = torch.randn(size + count, dim, device=DEVICE)
    rows, centers, offset = x[count:].clone(), x[:count].clone(), x.mean(dim=0)

    def run(backend):
        bound = torch.full((size,), float("inf"), device=DEVICE)
        return pick_block(rows, centers, offset, bound, -1.0, -1.0, picks, backend=backend)[0].tolist()

    expected = run("reference")
    for backend in ("reference", "triton"):
        yield backend, lambda backend=backend: run(backend), lambda call: call() == expected, {"bytes": x.nbytes}


CASES = {
    "masked_mean_pool": (pooling_case, [(64, 512, 4096, torch.bfloat16), (64, 512, 4096, torch.float32)]),
    "min_sqdist": (screening_case, [
        (262_144, 4096, 32, torch.bfloat16), (65_536, 4096, 1024, torch.bfloat16), (65_536, 1024, 4096, torch.bfloat16),
        (65_536, 4096, 32, torch.float32),
    ]),
    "pool_min_sqdist": (fused_case, [(64, 512, 4096, 32)]),
    "update_argmax": (streaming_case, [(65_536, 4096), (65_536, 384)]),
    "pick_block": (block_case, [(256, 4096, 1000, 100), (512, 384, 1000, 400)]),
}  # fmt: skip
SMALL = {
    "masked_mean_pool": (pooling_case, [(3, 9, 70, torch.bfloat16)]),
    "min_sqdist": (screening_case, [(600, 70, 33, torch.float32)]),
    "pool_min_sqdist": (fused_case, [(3, 9, 300, 40)]),
    "update_argmax": (streaming_case, [(300, 33)]),
    "pick_block": (block_case, [(40, 33, 5, 20)]),
}


def selections(limit_bytes: int):
    """Whole selections, M=1,000 and k=100 in bfloat16, with the memory that they take beyond x."""
    for n in (10_000, 100_000, 1_000_000, 10_000_000):
        if 2 * n * 4096 * 1.3 > limit_bytes:
            continue
        x = torch.empty(n, 4096, dtype=torch.bfloat16, device=DEVICE)
        for part in x.split(100_000):
            part.normal_()
        centers = list(range(1000))
        result = kcenter(x, 100, centers, backend="triton")
        same = None
        if n <= 100_000:
            same = kcenter(x.cpu(), 100, centers).indices.tolist() == result.indices.tolist()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        taken = []
        for _ in range(3):
            taken.append(kcenter(x, 100, centers, backend="triton").seconds)
        yield {
            "op": "kcenter", "backend": "triton", "shape": [n, 4096, 1000, 100], "dtype": "bfloat16",
            "p50": statistics.median(taken), "passes": result.passes, "passed": same,
            "extra_bytes": torch.cuda.max_memory_allocated() - before, "bytes": x.nbytes,
        }  # fmt: skip
        del x


def measured(rates: dict[str, float]):
    """A line for each op, shape and backend; a backend that fails its check is not timed."""
    for op, (case, shapes) in CASES.items():
        for shape in shapes:
            named = [str(value).removeprefix("torch.") for value in shape]
            for backend, run, check, work in case(*shape):
                line = {"op": op, "backend": backend, "shape": named, "passed": check(run)}
                if line["passed"]:
                    line |= times(run)
                    line["roofline"] = max(
                        work["bytes"] / rates["read_bytes_per_second"],
                        work.get("flops", 0) / rates["bfloat16_flops"],
                    )
                    line["of_roofline"] = line["roofline"] / line["p50"]
                yield line | work
            torch.cuda.empty_cache()


def run_small() -> bool:
    """Every Triton kernel once; whether all results are right."""
    passed = True
    for case, shapes in SMALL.values():
        for backend, run, check, _ in case(*shapes[0]):
            if backend.startswith("triton"):
                passed &= check(run)
    return passed


def digest() -> str:
    """Of the kernels' sources: a line speaks of these alone."""
    sources = sorted(path for folder in ("csrc", "kernels") for path in (ROOT / folder).rglob("*.*") if path.is_file())
    total = hashlib.sha256()
    for path in sources:
        if path.suffix != ".pyc":
            total.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def machine() -> dict:
    """What the lines were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    return {
        "device": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
        "commit": commit.stdout.strip(), "digest": digest(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def shown(line: dict) -> str:
    """A line for people."""
    seconds = f"{line['p50'] * 1e3:10.3f} ms" if "p50" in line else " " * 13
    share = f"{line['of_roofline']:5.0%} of the roofline" if "of_roofline" in line else ""
    memory = f"{line['extra_bytes'] / 1e6:.0f} MB beyond x" if "extra_bytes" in line else ""
    passes = f"{line['passes']:.2f} passes" if "passes" in line else ""
    verdict = {True: "passed", False: "FAILED", None: "not compared"}[line["passed"]]
    shape = " ".join(str(size) for size in line["shape"])
    return f"{line['op']:18} {line['backend']:22} {shape:28} {seconds} {verdict:12} {share}{passes} {memory}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "small"))
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    if args.what == "small":
        return 0 if run_small() else 1
    if DEVICE == "cpu":
        parser.exit(2, "no GPU: this measures one\n")
    rates, about = ceilings(), machine()
    print(json.dumps(about | {name: f"{rate:.4g}" for name, rate in rates.items()}), flush=True)
    name = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    passed = True
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / f"{name}.jsonl", "a", encoding="utf-8") as file:
        free = torch.cuda.mem_get_info()[0]
        for lines in (measured(rates), selections(free)):
            for line in lines:
                print(shown(line), flush=True)
                file.write(json.dumps(line | rates | about) + "\n")
                file.flush()
                passed &= line["passed"] is not False
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
