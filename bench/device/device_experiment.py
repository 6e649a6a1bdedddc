"""K-Center and random pools on a GPU, side by side.

python bench/device/device_experiment.py [--output FOLDER] [--seconds S]

Two configs of bench/experiments, seed by seed, with the model in bench/cache/model where one is there (any local causal
model), else with the one that they build. A line for each round is appended to FOLDER/<gpu>.jsonl when its run is
through; no further run is begun after S seconds.
"""

import argparse
import tempfile
import time
from pathlib import Path

from device_lines import ROOT, Lines

from diverseevol_fast.loop import run
from diverseevol_fast.runs.config import load_config

CONFIGS = ("kcenter", "random")
SEEDS = range(5)
MODEL = ROOT / "bench" / "cache" / "model"


def lines_of(config: str, seed: int, folder: Path, more: dict) -> list[dict]:
    """Run a config; a line for each round: its pool, losses, and the seconds of its stages."""
    overrides = {"seed": seed, "output_dir": str(folder / f"{config}-{seed}")} | more
    made = load_config(ROOT / "bench" / "experiments" / f"{config}.yml", overrides)
    state = run(made)
    about = {"what": "experiment", "case": config, "seed": seed, "model": made.model_name_or_path}
    return [about | {"round": r, "metrics": state.metrics(r)} for r in range(made.n_round + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--seconds", type=float, default=215.0)
    parser.add_argument("--tiny", action="store_true", help="one short run of each, to try this without a GPU")
    args = parser.parse_args()
    more = {"model_name_or_path": str(MODEL)} if MODEL.is_dir() else {}
    more |= {"n_round": 1, "init_label_num": 10, "n_query": 5, "val_set_size": 10} if args.tiny else {}
    out, until = Lines(args.output), time.perf_counter() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS if not args.tiny else [0]:
            for config in CONFIGS:
                if time.perf_counter() > until:
                    print(f"{config}, seed {seed}: left out, the {args.seconds:.0f} s are over", flush=True)
                    continue
                for line in lines_of(config, seed, Path(folder), more):
                    out.add(line)
                    print(line, flush=True)


if __name__ == "__main__":
    main()
