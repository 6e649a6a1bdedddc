"""K-Center, K-Center with lazy rounds, and random pools of a pretrained model on a GPU, at the paper's size.

    python bench/device/device_experiment.py [--output FOLDER] [--seconds S]

bench/experiments/pretrained/paper.yml, seed by seed. A line for each round is appended to FOLDER/<gpu>.jsonl when its
run is through; no further run is begun after S seconds. What has to be in bench/cache on the GPU's machine:

- instruct_15k.jsonl.gz, the rows;
- SmolLM2-135M-Instruct.Q4_1.gguf, or its parts, where it is too large to travel in one piece: split --number 2
  --numeric-suffixes --suffix-length 1 FILE FILE.part makes FILE.part0 and FILE.part1;
- gguf-*.whl, where the package is not installed there: pip download --no-deps gguf.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from device_lines import ROOT, Lines

from diverseevol_fast._common.files import atomic_path, file_sha256
from diverseevol_fast.loop import run
from diverseevol_fast.runs.config import Config, load_config

sys.path += [str(ROOT / "examples"), *map(str, (ROOT / "bench" / "cache").glob("gguf-*.whl"))]
from fetch_smollm2 import SHA256

CONFIG = ROOT / "bench" / "experiments" / "pretrained" / "paper.yml"
ARMS = {
    "kcenter": {"evol_schedule_name": "KCenterSampling"},
    "lazy": {"evol_schedule_name": "KCenterSampling", "lazy_rounds": True},
    "random": {"evol_schedule_name": "RandomSampling"},
}
SEEDS = range(3)
TINY = {"full_data_path": "builtin:quickstart", "model_name_or_path": "builtin:small-llama", "val_set_size": 10}
TINY |= {"n_round": 2, "init_label_num": 10, "n_query": 5, "train_args.bf16": False}


def join_parts(model: Path) -> None:
    """Put the model's file together where only its parts are there.

    Raises:
        SystemExit: a part is missing or damaged, or neither file nor parts are there.
    """
    if model.exists():
        return
    parts = sorted(model.parent.glob(f"{model.name}.part*"))
    with atomic_path(model) as joined:
        with open(joined, "wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        if file_sha256(joined) != SHA256:
            sys.exit(f"{model}: neither there nor whole in {len(parts)} parts; its first lines say how it gets there")


def lines_of(arm: str, config: Config) -> list[dict]:
    """Run a config; a line for each round: its pool, losses, and the seconds of its stages."""
    finished = run(config)
    about = {"what": "experiment", "case": arm, "seed": config.seed, "model": Path(config.model_name_or_path).name}
    return [about | {"round": r, "metrics": finished.metrics(r)} for r in range(finished.rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--seconds", type=float, default=215.0)
    parser.add_argument("--tiny", action="store_true", help="one short run of each, to try this without a GPU")
    args = parser.parse_args()
    if not args.tiny:
        join_parts(ROOT / load_config(CONFIG).model_name_or_path)
    out, until = Lines(args.output), time.perf_counter() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS if not args.tiny else [0]:
            for arm, settings in ARMS.items():
                if time.perf_counter() > until:
                    print(f"{arm}, seed {seed}: left out, the {args.seconds:.0f} s are over", flush=True)
                    continue
                own = settings | {"seed": seed, "output_dir": f"{folder}/{arm}-{seed}"}
                for line in lines_of(arm, load_config(CONFIG, own | (TINY if args.tiny else {}))):
                    out.add(line)
                    print(line, flush=True)


if __name__ == "__main__":
    main()
