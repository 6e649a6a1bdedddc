"""Seconds on the device's clock, and the rates that the card reaches."""

import statistics
import time

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the latter to try the benchmark itself, not to measure


def times(run, seconds: float = 0.25) -> dict[str, float]:
    """20th, 50th and 80th percentile of the seconds that one call takes, on the device's clock."""
    if DEVICE == "cpu":
        return dict.fromkeys(("p20", "p50", "p80"), once(run)[0])
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


def once(run) -> tuple[float, object]:
    """Seconds of one call, and what it returns."""
    synchronize()
    began = time.perf_counter()
    result = run()
    synchronize()
    return time.perf_counter() - began, result


def synchronize() -> None:
    """Wait for the GPU; an error of what was queued before is raised here."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def ceilings(side: int = 8192, elements: int = 1 << 30) -> dict[str, float]:
    """The card's measured rates: copy and read in bytes/s, products in FLOP/s; random data, as zeros run faster."""
    big = torch.empty(elements, dtype=torch.bfloat16, device=DEVICE).normal_()
    other = torch.empty_like(big)
    a = torch.randn(side, side, device=DEVICE)
    b = a.bfloat16()
    torch.backends.cuda.matmul.allow_tf32 = True
    flops = 2 * side**3
    copy = 2 * big.nbytes / times(lambda: other.copy_(big))["p50"]
    rates = {
        "copy_bytes_per_second": copy,
        # A copy reads half of what it moves while it writes; a reduction may be bound by its own arithmetic.
        "read_bytes_per_second": max(copy, big.nbytes / times(lambda: big.sum())["p50"]),
        "bfloat16_flops": flops / times(lambda: b @ b)["p50"],
        "tf32_flops": flops / times(lambda: a @ a)["p50"],
    }
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def roofline(work: dict[str, int], rates: dict[str, float]) -> float:
    """Seconds: the bytes read once, or the products at the bfloat16 rate, whichever takes longer."""
    products = work.get("flops", 0) / rates["bfloat16_flops"]
    return max(work["bytes"] / rates["read_bytes_per_second"], products)
