"""Seconds on the device's clock, and the rates that the card reaches."""

import statistics
import time

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the latter for `device.py small`, in Triton's interpreter


def times(run, seconds: float = 0.25) -> dict[str, float]:
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


def once(run) -> tuple[float, object]:
    """Seconds of one call, and what it returns."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    return time.perf_counter() - began, result


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


def roofline(work: dict[str, int], rates: dict[str, float]) -> float:
    """Seconds: the bytes read once, or the products at the bfloat16 rate, whichever takes longer."""
    products = work.get("flops", 0) / rates["bfloat16_flops"]
    return max(work["bytes"] / rates["read_bytes_per_second"], products)
