"""This tree against a git revision: the same calls in processes of each, in turn; ratios of times with their spread.

python bench/cpu/compare.py REVISION [--rounds 7]

Both are built anew into build/compare. A ratio above 1 means that this tree is faster. Picks are compared first: where
they differ, no ratio is shown.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "compare"
SELECTIONS = {  # rows, dimensions, centers, picks
    "15,011 x 384, 100 centers, 100 picks": (15_011, 384, 100, 100),
    "15,011 x 1,024, 1,000 centers, 100 picks": (15_011, 1_024, 1_000, 100),
    "20,000 x 384, 1 center, 2,000 picks": (20_000, 384, 1, 2_000),
    "52,002 x 384, 100 centers, 100 picks": (52_002, 384, 100, 100),
}
POOLED = (32, 256, 512)  # rows, tokens, dimensions


def build(source: Path, target: Path) -> None:
    """Install the package of a checkout into a folder, for the CPU."""
    shutil.rmtree(target, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"DEF_CUDA": "off", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, env=environment)


def checkout(revision: str) -> Path:
    """The revision's files, without its history."""
    folder = BUILDS / "source"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def measure() -> dict[str, dict]:
    """What a process of one build is asked for: by case the fastest of three times, and a digest of the result."""
    import numpy as np
    import torch

    from diverseevol_fast import kcenter, masked_mean_pool

    found = {}
    for name, (n, d, m, k) in SELECTIONS.items():
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((n, d), dtype=np.float32))
        found[f"kcenter, {name}"] = timed(lambda x=x, k=k, m=m: kcenter(x, k, list(range(m))).indices)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POOLED, generator=generator)
    mask = torch.rand(POOLED[:2], generator=generator) < 0.9
    found[f"masked_mean_pool, {' x '.join(map(str, POOLED))}"] = timed(lambda: masked_mean_pool(hidden, mask).numpy())
    return found


def timed(call) -> dict:
    """The fastest of three calls after one that warms up, in seconds, and the SHA-256 of what it returns."""
    result, seconds = call(), []
    for _ in range(3):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return {"seconds": min(seconds), "sha256": hashlib.sha256(result.tobytes()).hexdigest()}


def run(site: Path) -> dict[str, dict]:
    """measure in a process of the build at `site`."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(site)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def compare(revision: str, rounds: int) -> None:
    """Build both, measure them in turn, and print a line for each case."""
    sites = {"this tree": BUILDS / "this", revision: BUILDS / "that"}
    build(ROOT, sites["this tree"])
    build(checkout(revision), sites[revision])
    measured: dict[str, list[dict[str, dict]]] = {name: [] for name in sites}
    for number in range(rounds):
        for name, site in list(sites.items())[:: 1 if number % 2 == 0 else -1]:
            measured[name].append(run(site))
    print(f"{rounds} rounds; medians of this tree and of {revision}; ratio: time of {revision} / this tree's, by round")
    for case in measured["this tree"][0]:
        ours, theirs = ([one[case] for one in measured[name]] for name in sites)
        if {one["sha256"] for one in ours} != {one["sha256"] for one in theirs}:
            print(f"{case}: the results differ; no ratio")
            continue
        ratios = sorted(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True))
        medians = [statistics.median(one["seconds"] for one in part) for part in (ours, theirs)]
        print(
            f"{case}: {medians[0]:.4g} s, {medians[1]:.4g} s; {statistics.median(ratios):.2f}x "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("revision", nargs="?", default="HEAD~1", help="a git revision (HEAD~1)")
    parser.add_argument("--rounds", type=int, default=7, help="processes of each (7)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.child:
        return compare(args.revision, args.rounds)
    import diverseevol_fast

    if not Path(diverseevol_fast.__file__).is_relative_to(args.child):
        sys.exit(f"imported {diverseevol_fast.__file__}, expected the build in {args.child}")
    print(json.dumps(measure()))


if __name__ == "__main__":
    main()
