"""K-Center against other selections on a real model: runs the configs beside this file, seed by seed.

    python bench/experiments/pretrained/run_pretrained.py [--seeds 0 1 2 3 4]

Each arm that is through adds a line to bench/results/pretrained.jsonl, and is not run again; what a stop interrupts
goes on with the same command. What the arms of a seed share is computed once: the round of the initial pool, and the
embeddings of its model. Models are removed when their seed is through. pretrained_tables.py makes the tables.
"""

import argparse
import json
import platform
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench" / "experiments"))
from run_experiments import environment  # noqa: E402

from diverseevol_fast.cli.main import main as diverseevol  # noqa: E402
from diverseevol_fast.data.tokens import Tokens  # noqa: E402
from diverseevol_fast.runs.evaluation_loss import response_losses  # noqa: E402
from diverseevol_fast.runs.finished import FinishedRun, read_run  # noqa: E402
from diverseevol_fast.runs.training import load_model  # noqa: E402

CONFIGS = Path(__file__).resolve().parent
OUTPUT = ROOT / "evol_res" / "experiments-pretrained"
RESULTS = ROOT / "bench" / "results" / "pretrained.jsonl"
ARMS = ("kcenter", "random", "whitened", "one_shot", "static")  # kcenter first: others take over its embeddings
OF_INITIAL = ("kcenter", "whitened", "one_shot", "static")  # begin with the round of initial.yml
SAME_EMBEDDINGS = ("whitened", "one_shot")  # embed in round 1 what kcenter does


def finished_lines() -> list[dict]:
    """The lines so far."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []


def run_arm(arm: str, seed: int, folder: Path) -> FinishedRun:
    """Let `diverseevol run` make or continue an arm in its folder."""
    arguments = ["run", str(CONFIGS / f"{arm}.yml"), "--seed", str(seed), "--output_dir", str(folder), "--quiet"]
    if diverseevol(arguments):
        sys.exit(f"{arm}, seed {seed}: failed; the same command goes on")
    return read_run(folder)


def with_initial(arm: str, seeds_folder: Path) -> Path:
    """The arm's folder, which begins as a copy of what the arms share."""
    folder = seeds_folder / arm
    if not folder.exists() and arm in OF_INITIAL:
        partial = seeds_folder / f".{arm}"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(seeds_folder / "initial", partial)
        if arm in SAME_EMBEDDINGS:
            shutil.copytree(seeds_folder / "kcenter-round-1", partial / "state" / "rd_1")
        partial.rename(folder)
    return folder


def keep_embeddings(seeds_folder: Path, run: FinishedRun) -> None:
    """Put the first round's embeddings where with_initial finds them; nothing that says what was picked."""
    target = seeds_folder / "kcenter-round-1"
    if not target.exists():
        partial = target.with_name(".kcenter-round-1")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        source = run.state.embeddings_file(1)
        for path in (source, source.with_name(source.name + ".json")):
            shutil.copy(path, partial)
        partial.rename(target)


def losses_by_group(run: FinishedRun) -> dict[str, list[float]]:
    """The last model's summed loss and number of response tokens over the validation rows of each group."""
    validation = np.setdiff1d(np.arange(len(run.data.rows)), run.candidates)
    held_out = {row for group in (run.config.held_out_groups or {}).values() for row in group}
    rows = np.array([i for i in validation if run.data.rows[i]["group"] not in held_out])
    tokens = Tokens.load(run.state.tokens_file)
    model = load_model(run.model_folder(run.rounds - 1), run.config)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        sums, counts = response_losses(model, tokens, rows, "validation")
    groups = np.array([run.data.rows[i]["group"].split(":")[0] for i in rows])
    return {group: [float(sums[groups == group].sum()), int(counts[groups == group].sum())] for group in set(groups)}


def line_of(arm: str, seed: int, run: FinishedRun, seconds: float) -> dict:
    """What is kept of an arm: losses, the pool, what each stage took."""
    rounds = [run.metrics(r) for r in range(run.rounds)]
    last = rounds[-1]["train"]
    groups = [run.data.rows[i]["group"] for i in run.pool(run.rounds - 1)]
    return {
        "experiment": "pretrained",
        "arm": arm,
        "seed": seed,
        "pool": len(groups),
        "validation_loss": last["validation_loss"],
        "held_out_groups_loss": last["held_out_groups_loss"],
        "loss_by_source": losses_by_group(run),
        "groups_in_pool": len(set(groups)),
        "pool_by_source": {
            name: sum(g.split(":")[0] == name for g in groups) for name in {g.split(":")[0] for g in groups}
        },
        "tokens_in_pool": int(Tokens.load(run.state.tokens_file).lengths()[run.pool(run.rounds - 1)].sum()),
        "rounds": rounds,
        "seconds": seconds,
        "processor": processor(),
    } | environment()


def processor() -> str:
    """The CPU's name."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text("ascii").splitlines()
        if "model name" in line
    ]
    return names[0] if names else platform.machine()


def run_seed(seed: int) -> None:
    """Every arm of a seed that has no line yet."""
    seeds_folder = OUTPUT / f"seed{seed}"
    done = {line["arm"] for line in finished_lines() if line["seed"] == seed}
    if done >= set(ARMS):
        return
    run_arm("initial", seed, seeds_folder / "initial")
    for arm in ARMS:
        if arm in done:
            continue
        began = time.perf_counter()
        run = run_arm(arm, seed, with_initial(arm, seeds_folder))
        if arm == "kcenter":
            keep_embeddings(seeds_folder, run)
        line = line_of(arm, seed, run, time.perf_counter() - began)
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        losses = f"{line['validation_loss']:.4f}, {line['held_out_groups_loss']:.4f}"
        print(f"seed {seed}, {arm}: {losses}, {line['seconds']:.0f} s", flush=True)
    for folder in seeds_folder.glob("*/output"):
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    for seed in parser.parse_args().seeds:
        run_seed(seed)


if __name__ == "__main__":
    main()
