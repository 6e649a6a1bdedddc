"""The drop-in table: whole calls of other implementations with their own selection and with ours, in one run.

    python bench/cpu/drop_in.py [--output bench/results/NAME.jsonl]

anomalib is the real package (`make bench-drop-in` runs this where it is installed), the others are restated in
peers.py. Every call has a process of its own: seconds are the best of three, or of one where that took more than five;
memory is what the process grew by at most during the first call. Rows: sentence embeddings (of real_embeddings.py),
D=384. 100 rows are selected already and 100 are picked; anomalib picks a tenth of the rows from a random one.
"""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import selection
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # peers.py, which tests share
import peers
from real_embeddings import kept

CENTERS = PICKS = 100
RATIO = 0.1  # of anomalib's coreset
SIZES = (5_000, 15_000, 50_000)
TARGETS = ("DiverseEvol", "DeepAL", "google/active-learning", "anomalib", "scikit-learn")
MATRIX = ("DiverseEvol", "DeepAL")  # hold N x N distances: about 12 bytes each at the peak
LEFT_FREE = 0.9  # of the memory that is there


def rows(n: int) -> np.ndarray:
    """[n, 384] float32."""
    path = kept("sentences", 52_002)
    if not path.exists():
        sys.exit(f"{path}: missing; python bench/cpu/real_embeddings.py sentences DATA makes the embeddings")
    return np.ascontiguousarray(np.load(path, mmap_mode="r")[:n])


def theirs(target: str, x: np.ndarray):
    """The target's own whole call, which returns its picks."""
    centers = list(range(CENTERS))
    if target == "anomalib":
        greedy = anomalib_greedy()
        return lambda: seeded(lambda: greedy(torch.from_numpy(x), RATIO).select_coreset_idxs())
    loop = {
        "DiverseEvol": peers.reference_formula,
        "DeepAL": peers.deepal_loop,
        "google/active-learning": peers.google_loop,
        "scikit-learn": peers.sklearn_argmin_min,
    }[target]
    return lambda: loop(x, centers, PICKS)


def ours(target: str, x: np.ndarray):
    """The same call with our selection under it."""
    centers = list(range(CENTERS))
    mask = np.arange(len(x)) < CENTERS
    if target == "anomalib":
        from diverseevol_fast.compat import anomalib

        greedy = anomalib_greedy()
        anomalib.patch()
        return lambda: seeded(lambda: greedy(torch.from_numpy(x), RATIO).select_coreset_idxs())
    if target == "DiverseEvol":
        from diverseevol_fast.compat.upstream import KCenterSampling

        schedule = KCenterSampling()
        schedule.labeled_idx, schedule.n_pool = torch.from_numpy(mask), len(x)
        schedule.get_embeddings_all_data = lambda **_: list(torch.from_numpy(x))
        return lambda: schedule.query(0, PICKS, "").tolist()
    if target == "DeepAL":
        from diverseevol_fast.compat.deepal import KCenterGreedy

        strategy = KCenterGreedy(argparse.Namespace(get_train_data=lambda: (mask, x)), None)
        strategy.get_embeddings = torch.from_numpy
        return lambda: strategy.query(PICKS).tolist()
    if target == "google/active-learning":
        from diverseevol_fast.compat.google import kCenterGreedy

        return lambda: kCenterGreedy(x, None, 0).select_batch_(None, centers, PICKS)
    from diverseevol_fast.compat.sklearn import KCenterSelector

    return lambda: KCenterSelector(PICKS).fit(x, selected=centers).sample_indices_.tolist()


def anomalib_greedy():
    """anomalib's class. With torch's CPU build, torchvision's wheel lacks two operators, which nothing here calls."""
    if torch.version.cuda is None:
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        anomalib_greedy.operators = operators  # they are gone when it is
    from anomalib.models.components import KCenterGreedy

    return KCenterGreedy


def seeded(call):
    torch.manual_seed(0)
    np.random.seed(0)
    return call()


def measure_here(target: str, side: str, n: int) -> dict:
    """Seconds, bytes and picks of one call, in this process."""
    call = {"theirs": theirs, "ours": ours}[side](target, rows(n))
    torch.ones(256, 256) @ torch.ones(256, 256)  # threads and buffers that every call has are there
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
    call()
    grown = status("VmHWM") - before
    seconds, picks = selection.best_time(call)
    return {"seconds": seconds, "extra_bytes": grown, "picks": picks}


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", text)[1])


def measure(target: str, side: str, n: int) -> dict | None:
    """As measure_here, in a process of its own; None where the memory does not suffice."""
    if side == "theirs" and target in MATRIX and 12 * n * n > LEFT_FREE * memory():
        return None
    command = [sys.executable, __file__, "--measure", target, side, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{target}, {side}, N={n}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def memory() -> int:
    """Bytes that are free for a new process."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1])


def compare(target: str, n: int) -> dict:
    """One line of the table."""
    own, fast = measure(target, "theirs", n), measure(target, "ours", n)
    line = {"target": target, "n": n, "d": 384, "ours": {key: fast[key] for key in ("seconds", "extra_bytes")}}
    if own is None:
        return line | {"theirs": None, "needs_bytes": 12 * n * n}
    in_order = target not in MATRIX
    same = own["picks"] == fast["picks"] if in_order else sorted(own["picks"]) == sorted(fast["picks"])
    line |= {"theirs": {key: own[key] for key in ("seconds", "extra_bytes")}, "same_picks": same}
    return line if same else line | {"first_difference": first_difference(target, n, own["picks"], fast["picks"])}


def first_difference(target: str, n: int, own: list[int], fast: list[int]) -> dict:
    """Where the sequences part, how much farther our pick is (squared distance), and what float32 may round off it."""
    x = torch.tensor(rows(n), dtype=torch.float64)
    if target == "anomalib":
        from diverseevol_fast.compat.anomalib import projection

        x = x @ seeded(lambda: projection(*x.shape)).double().T
    place = next(i for i, (a, b) in enumerate(zip(own, fast, strict=True)) if a != b)
    known = x[([] if target == "anomalib" else list(range(CENTERS))) + own[:place]]
    farther, nearer = ((known - x[rows[place]]).square().sum(dim=1).min() for rows in (fast, own))
    rounding = 8 * torch.finfo(torch.float32).eps * x.square().sum(dim=1).max()
    return {"pick": place, "gap": float(farther - nearer), "rounding": float(rounding)}


def parted(pick: int, gap: float, rounding: float) -> str:
    """The difference in words."""
    kind = "tie" if gap < rounding else "NOT A TIE"
    return f"{pick:,}, then a {kind}: {gap:.1g} in squared distance of float32's {rounding:.1g}"


def table(lines: list[dict]) -> str:
    """Markdown."""
    out = [
        "| under | N | own: seconds | ours: seconds | times faster | own: memory | ours: memory | same picks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        fast, own = line["ours"], line["theirs"]
        mine = f"{fast['seconds']:.3g}", f"{fast['extra_bytes'] / 1e6:,.0f} MB"
        if own is None:
            needs = f"needs {line['needs_bytes'] / 1e9:.0f} GB"
            cells = ["not possible", mine[0], "", needs, mine[1], ""]
        else:
            times = f"{own['seconds'] / fast['seconds']:,.0f}x"
            same = "yes" if line["same_picks"] else parted(**line["first_difference"])
            cells = [f"{own['seconds']:.3g}", mine[0], times, f"{own['extra_bytes'] / 1e6:,.0f} MB", mine[1], same]
        out.append("| " + " | ".join([line["target"], f"{line['n']:,}", *cells]) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=selection.ROOT / "bench" / "results" / "drop-in-cpu.jsonl")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        target, side, n = args.measure
        print(json.dumps(measure_here(target, side, int(n))))
        return
    if importlib.util.find_spec("anomalib") is None:
        sys.exit("anomalib is not installed; make bench-drop-in")
    lines = []
    for target in TARGETS:
        for n in SIZES:
            lines.append(compare(target, n))
            print(table(lines[-1:]).splitlines()[-1], flush=True)
    with open(args.output, "a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line | selection.machine()) + "\n")
    print(f"\n{table(lines)}\n{args.output}: {len(lines)} lines")


if __name__ == "__main__":
    main()
