"""Runs bench/experiments/*.yml over several seeds; writes bench/results/experiments.jsonl, its charts, and the tables.

python bench/experiments/run_experiments.py [--seeds 0 1 2] [NAME ...]

What was finished before is not run again. The tables go into docs/experiments.md between its marks; what they mean is
written there by hand.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from experiment_tables import charts, tables

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cpu"))
from real_embeddings import encoder

from diverseevol_fast._common.files import read_json, write_json
from diverseevol_fast.cli.main import main
from diverseevol_fast.evaluate.diversity import measure_run
from diverseevol_fast.runs.config import load_config
from diverseevol_fast.runs.finished import FinishedRun, read_run

BENCH = Path(__file__).resolve().parents[1]
OUTPUT = Path("evol_res/experiments")
PAGE = BENCH.parent / "docs" / "experiments.md"
MARKS = "<!-- tables: written by bench/experiments/run_experiments.py -->", "<!-- end of tables -->"
MEASURED = ("vendi", "covering_radius", "chamfer", "novelsum")  # of the pool, in a sentence encoder's embeddings


def made_run(config: Path, seed: int) -> tuple[FinishedRun, dict]:
    """The run of a config with a seed, made now unless it was; and how long (None: in parts), on what."""
    folder = OUTPUT / config.stem / f"seed{seed}"
    stamp, fresh, began = folder / "made.json", not folder.exists(), time.perf_counter()
    if main(["run", str(config), "--seed", str(seed), "--output_dir", str(folder), "--quiet"]):
        sys.exit(f"{config}: seed {seed} failed; the same command goes on")
    if not stamp.exists():
        write_json(stamp, {"run_seconds": time.perf_counter() - began if fresh else None} | environment())
    return read_run(folder), read_json(stamp)


def sentence_embeddings(config: Path) -> Path:
    """Every row of the config's data by a small sentence encoder, the same for all runs: [N, D] as .npy."""
    source = load_config(config).full_data_path
    output = OUTPUT / f"{Path(source).stem.replace(':', '-')}.npy"
    if not output.is_file():
        status = main(["embed", "--data", source, "--model", str(encoder()), "--output", str(output), "--quiet"])
        if status:
            sys.exit(f"{source}: not embedded")
    return output


# What a line calls a loss -> what a run calls it; the lines keep the names that the first of them had.
LOSSES = {
    "held_out_loss": "validation_loss",
    "held_out_interval": "validation_interval",
    "unseen_loss": "held_out_groups_loss",
}


def lines_of(config: Path, seed: int) -> list[dict]:
    """A line for each round of the run: what it trained on, its losses, how diverse its pool is."""
    run, made = made_run(config, seed)
    diversity = measure_run(run, embeddings=sentence_embeddings(config), random=5, seed=seed)
    lines = []
    for r in range(run.rounds):
        trained = run.state.metrics(r)["train"]
        values = {name: diversity["rounds"][r]["values"][name] for name in MEASURED}
        random = {name: diversity["rounds"][r]["random"][name]["mean"] for name in MEASURED}
        lines.append(
            {
                "experiment": config.stem,
                "strategy": run.config.evol_schedule_name,
                "seed": seed,
                "round": r,
                "pool": len(run.pool(r)),
                **{name: trained.get(key) for name, key in LOSSES.items()},
                "families": len({run.data.rows[row]["family"] for row in run.pool(r)}),
                "diversity": values,
                "diversity_of_random": random,
                **made,
            }
        )
    return lines


def environment() -> dict:
    """What the figures were made on."""
    git = ["git", "-C", str(BENCH), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def write_page(lines: list[dict]) -> None:
    """Put the tables between the page's marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{tables(lines)}\n\n{MARKS[1]}{after}", encoding="utf-8")


def merged(path: Path, lines: list[dict]) -> list[dict]:
    """The lines, and those in the file that are of other runs, by seed and experiment."""
    made = {(line["experiment"], line["seed"]) for line in lines}
    kept = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    lines = [line for line in kept if (line["experiment"], line["seed"]) not in made] + lines
    return sorted(lines, key=lambda line: (line["seed"], line["experiment"], line["round"]))


def run_all() -> None:
    """Run the configs that are asked for, and write the results of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of bench/experiments/*.yml; all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    configs = [
        path for path in sorted((BENCH / "experiments").glob("*.yml")) if path.stem in args.names or not args.names
    ]
    began, lines = time.perf_counter(), []
    for seed in args.seeds:
        for config in configs:
            lines += lines_of(config, seed)
            last = lines[-1]
            print(
                f"{time.perf_counter() - began:6.0f} s  {config.stem} seed {seed}: {last['held_out_loss']:.4f}",
                flush=True,
            )
    results = BENCH / "results"
    lines = merged(results / "experiments.jsonl", lines)
    (results / "experiments.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, figure in charts(lines).items():
        figure.savefig(results / f"experiments-{name}.png", dpi=150)
    write_page(lines)


if __name__ == "__main__":
    run_all()
