"""The peers table: same picks or not, seconds, ratio, passes, memory and share of the roofline, in one run.

    python bench/cpu/selection.py [--shapes small|hidden-states|all] [--output bench/results/NAME.jsonl]

The picks are compared with the streaming float64 loop. A peer that would need more than `--memory` GB, or minutes, is
left out. Times are the best of three, or of one where that took more than five seconds.
"""

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

import diverseevol_fast
from diverseevol_fast import kcenter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # peers.py, which tests share
import peers
from real_embeddings import kept

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "bench" / "cache"
SLOW = 2e10  # elements read one center at a time: above, peers that take minutes are left out
PEERS = {  # name: (function, bytes that it needs, whether it is slow)
    "reference formula (N x N)": (peers.reference_formula, lambda n, d: 12 * n * n, False),
    "DeepAL loop (N x N)": (peers.deepal_loop, lambda n, d: 12 * n * n, False),
    "google loop": (peers.google_loop, lambda n, d: 8 * n * d, True),
    "anomalib loop": (peers.anomalib_loop, lambda n, d: 4 * n * d, True),
    "sklearn argmin_min": (peers.sklearn_argmin_min, lambda n, d: 0, True),
    "matrix-vector loop": (peers.matrix_vector_loop, lambda n, d: 0, False),
    "fpsample": (peers.fpsample_loop, lambda n, d: 0, True),
}
SHAPES = {
    "small": [
        ("gaussian", 15_011, 4_096, 100, 100),
        ("gaussian", 20_000, 384, 1, 2_000),
        ("sentences", 15_011, 384, 100, 100),
        ("sentences", 15_011, 384, 1, 1_501),
        ("hidden-states", 15_011, 576, 100, 100),
        ("hidden-states", 15_011, 576, 1, 1_501),
    ],
    "hidden-states": [
        (kind, 15_011, 576, m, k) for kind in ("hidden-states", "gaussian") for m, k in ((100, 100), (1, 1_501))
    ],
    "all": [
        *(("gaussian", n, d, m, 100) for n in (15_011, 52_002) for d in (384, 1_024, 4_096) for m in (100, 1_000)),
        ("gaussian", 20_000, 384, 1, 2_000),
        ("sentences", 15_011, 384, 100, 100),
        ("sentences", 15_011, 384, 1, 1_501),
        ("hidden-states", 15_011, 576, 100, 100),
        ("hidden-states", 15_011, 576, 1, 1_501),
        ("sentences", 52_002, 384, 100, 100),
        ("sentences", 52_002, 384, 1, 5_200),
    ],
}


def rows_of(kind: str, n: int, d: int) -> np.ndarray:
    """Gaussian rows, or embeddings of real rows, which bench/cpu/real_embeddings.py makes."""
    if kind == "gaussian":
        return np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    return np.load(kept(kind, n))


def best_time(call):
    """Seconds of the fastest call, and its result."""
    times = []
    while len(times) < 3 and (not times or times[0] < 5):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
    return min(times), result


def peak_memory(call) -> int:
    """Bytes by which the resident set grew at most while `call` ran, sampled every millisecond."""
    page, stop, peak = os.sysconf("SC_PAGE_SIZE"), threading.Event(), 0

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what earlier calls freed hides what this one takes
    before = resident()

    def watch():
        nonlocal peak
        while not stop.wait(0.001):
            peak = max(peak, resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    stop.set()
    watcher.join()
    return peak


def machine_rates() -> dict[str, float]:
    """Measured now: bytes/s of a large read, FLOP/s of large float32 and bfloat16 products."""
    a = torch.randn(4096, 4096)
    b = a.bfloat16()
    big = torch.randn(64 << 20)
    flops = 2 * 4096**3
    return {
        "read_bytes_per_second": big.nbytes / best_time(big.sum)[0],
        "float32_flops": flops / best_time(lambda: a @ a)[0],
        "bfloat16_flops": flops / best_time(lambda: b @ b)[0],
    }


def roofline(n: int, d: int, m: int, rates: dict[str, float]) -> float:
    """Seconds: x read once, or the screen's products at the float32 rate, whichever takes longer."""
    return max(4 * n * d / rates["read_bytes_per_second"], 2 * n * d * m / rates["float32_flops"])


def measure(shape, rates: dict[str, float], memory: float) -> list[dict]:
    """All contenders on one shape."""
    kind, n, d, m, k = shape
    x = rows_of(kind, n, d)
    centers = list(range(m))
    limit = roofline(n, d, m, rates)
    seconds, exact = best_time(lambda: kcenter(x, k, centers, method="streaming"))
    wanted = exact.indices.tolist()
    rows = [entry("ours, streaming float64", seconds, wanted, wanted, limit, passes=exact.passes)]
    seconds, ours = best_time(lambda: kcenter(x, k, centers))
    extra = peak_memory(lambda: kcenter(x, k, centers))
    rows.insert(
        0, entry("ours, block", seconds, ours.indices.tolist(), wanted, limit, passes=ours.passes, memory=extra)
    )
    for name, (peer, needs, slow) in PEERS.items():
        too_large = needs(n, d) > memory * 1e9
        too_slow = (name.endswith("(N x N)") and k > 200) or (slow and n * d * (m + k) > SLOW)
        if too_large or too_slow or (peer is peers.fpsample_loop and m > 1):  # which starts from one center alone
            continue
        took, picks = best_time(lambda peer=peer: peer(x, centers, k))
        rows.append(entry(name, took, picks, wanted, limit, ratio=took / seconds))
    return [row | {"data": kind, "n": n, "d": d, "m": m, "k": k} for row in rows]


def entry(name, seconds, picks, wanted, limit, ratio=None, passes=None, memory=None) -> dict:
    same = next((i for i, (a, b) in enumerate(zip(picks, wanted, strict=True)) if a != b), len(wanted))
    return {
        "what": name,
        "seconds": seconds,
        "same_picks": same == len(wanted),
        "first_different_pick": same,
        "times_ours": ratio,
        "passes": passes,
        "extra_bytes": memory,
        "times_roofline": seconds / limit,
    }


def table(rows: list[dict]) -> str:
    """The lines of one shape as Markdown."""
    first = rows[0]
    lines = [
        f"**{first['data']} N={first['n']:,} D={first['d']:,}, M={first['m']:,}, k={first['k']:,}**",
        "",
        "| | seconds | times ours | same picks | passes | times roofline | extra memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = "yes" if row["same_picks"] else f"first {row['first_different_pick']}"
        cells = [
            row["what"],
            f"{row['seconds']:.4g}",
            f"{row['times_ours']:.0f}x" if row["times_ours"] else "",
            same,
            f"{row['passes']:.2f}" if row["passes"] is not None else "",
            f"{row['times_roofline']:.1f}",
            f"{row['extra_bytes'] / 1e6:.0f} MB" if row["extra_bytes"] else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """Seconds of every contender on every shape, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys((r["data"], r["n"], r["d"], r["m"], r["k"]) for r in rows))
    figure, axes = pyplot.subplots(len(shapes), 1, figsize=(9, 2.6 * len(shapes)), squeeze=False)
    for axis, shape in zip(axes[:, 0], shapes, strict=True):
        mine = [r for r in rows if (r["data"], r["n"], r["d"], r["m"], r["k"]) == shape][::-1]
        colors = ["tab:orange" if r["what"].startswith("ours") else "tab:gray" for r in mine]
        axis.barh([r["what"] for r in mine], [r["seconds"] for r in mine], color=colors)
        axis.set_xscale("log")
        axis.set_title("{} N={:,} D={:,} M={:,} k={:,}".format(*shape), fontsize=9)
        axis.tick_params(labelsize=8)
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def machine() -> dict:
    """What the figures were measured on."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    from diverseevol_fast.ops import native

    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "isa": native.chosen_isa(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "diverseevol_fast": diverseevol_fast.__version__,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="all")
    parser.add_argument("--memory", type=float, default=16.0, help="GB that a peer may need")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "selection-cpu.jsonl")
    args = parser.parse_args()
    rates, everything = machine_rates(), []
    print({name: f"{value:.4g}" for name, value in rates.items()}, machine())
    for shape in SHAPES[args.shapes]:
        if shape[0] != "gaussian" and not kept(*shape[:2]).exists():
            print(f"{shape}: left out; python bench/cpu/real_embeddings.py {shape[0]} DATA makes the embeddings\n")
            continue
        rows = measure(shape, rates, args.memory)
        everything += rows
        print(table(rows), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open(args.output, "a", encoding="utf-8") as file:
        for row in everything:
            file.write(json.dumps(row | rates | machine()) + "\n")
    plot(everything, args.output.with_suffix(".png"))
    print(f"{args.output}: {len(everything)} lines; {args.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
