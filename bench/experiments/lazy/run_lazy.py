"""Lazy rounds against embedding all rows, on a real model: the configs beside this file, seed by seed.

    python bench/experiments/lazy/run_lazy.py [--arms full lora high] [--seeds 0 1 2] [--runs]

Each arm and seed is run the full way, which embeds all rows in every round. LazyTraversal then selects every round
again, from the same pool, in the same embeddings: rows that it asks for are read from those of the full way, and what
it does not embed is predicted from the round before, as in a run. So all multiples, probes and draws are compared on
the same rounds. With --runs, the arm is also run with lazy_rounds, for the seconds of both: nothing else should run on
the machine then. An arm and seed that is through adds its lines to bench/results/lazy.jsonl, and is not run again; what
a stop interrupts goes on with the same command. lazy_tables.py makes the tables.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "bench" / "experiments"), str(ROOT / "bench" / "experiments" / "pretrained")]
from run_experiments import environment  # noqa: E402
from run_pretrained import processor  # noqa: E402

from diverseevol_fast import LazyTraversal, embed, kcenter  # noqa: E402
from diverseevol_fast.cli.main import main as diverseevol  # noqa: E402
from diverseevol_fast.data.tokens import Tokens  # noqa: E402
from diverseevol_fast.runs.finished import FinishedRun, read_run  # noqa: E402
from diverseevol_fast.runs.training import load_model  # noqa: E402
from diverseevol_fast.selection.lazy import MOVING  # noqa: E402

CONFIGS = Path(__file__).resolve().parent
OUTPUT = ROOT / "evol_res" / "experiments-lazy"
RESULTS = ROOT / "bench" / "results" / "lazy.jsonl"
ARMS = ("full", "lora", "high", "quickstart", "ten")
BOUNDS = {"residual": (1.0, 1.5, 2.0), "drift": (1.0, 1.1)}  # and their multiples
PROBES = (64, 128, 256)
DRAWS = 5


class Rounds:
    """One run's rounds from 1 on: the pool before each, and all rows' embeddings; those of round 0 are the base's."""

    def __init__(self, pools: list[list[int]], embeddings: list[np.ndarray], lengths: np.ndarray):
        """pools, embeddings: of rounds 0, 1, ...; pools[0] is not used. lengths: [N], tokens of each row."""
        self.pools, self.embeddings, self.lengths = pools, embeddings, lengths
        self.numbers = range(1, len(embeddings))
        self.n_query = len(pools[2]) - len(pools[1])
        self.full = {r: kcenter(embeddings[r], self.n_query, pools[r]) for r in self.numbers}


def rounds_of(run: FinishedRun, base: np.ndarray) -> Rounds:
    """The rounds of a run whose candidates are all rows, and the one that would follow."""
    embeddings = [base] + [np.load(run.state.embeddings_file(r)) for r in range(1, run.rounds)]
    embeddings.append(last_embeddings(run, run.folder / "last-embeddings.npy"))
    pools = [[], *(run.pool(r) for r in range(run.rounds))]
    return Rounds(pools, embeddings, Tokens.load(run.state.tokens_file).lengths())


def last_embeddings(run: FinishedRun, file: Path) -> np.ndarray:
    """All rows by the last round's model, which would select the next round."""
    if not file.exists():
        model = load_model(run.model_folder(run.rounds - 1), run.config, run.base_model())
        embedded_by(run, model, file)
    return np.load(file)


def base_embeddings(run: FinishedRun, file: Path) -> np.ndarray:
    """All rows by the model that training begins with."""
    if not file.exists():
        embedded_by(run, load_model(run.base_model(), run.config, run.base_model()), file)
    return np.load(file)


def embedded_by(run: FinishedRun, model, file: Path) -> None:
    from diverseevol_fast.models.load import load_tokenizer

    config = run.config
    tokenizer = load_tokenizer(run.base_model())
    kwargs = {"template": config.template, "max_length": config.model_max_length}
    embed(config.full_data_path, model, tokenizer, store=file, **kwargs)


def replayed(rounds: Rounds, seed: int, **settings) -> list[dict]:
    """A line for each round: what LazyTraversal picked and embedded, against greedy on all embeddings."""
    lines = []
    # Round 1 from the base model's embeddings; round 2 as in a run, whose round 1 embeds all rows.
    earlier = {1: rounds.embeddings[0], 2: rounds.embeddings[1]}
    embedded_in = np.ones(len(rounds.lengths), dtype=np.int64)
    for r in rounds.numbers:
        new, full = rounds.embeddings[r], rounds.full[r]
        ages = None if r == 1 else r - embedded_in
        lazy = LazyTraversal(
            earlier[r], lambda rows, new=new: new[rows], rounds.pools[r], ages=ages, seed=seed, **settings
        )
        result = lazy.select(rounds.n_query)
        if r > 1:
            earlier[r + 1] = lazy.values
            embedded_in[result.embedded] = r
        drawn = max(MOVING - len(rounds.pools[r]), 0) + settings["probe"] + sum(audit.rows for audit in result.audits)
        common = len(np.intersect1d(result.indices, full.indices))
        lines.append(
            {
                "round": r,
                "draw": seed,
                "missed": rounds.n_query - common,
                "same_order": bool(np.array_equal(result.indices, full.indices)),
                "radius_ratio": round(
                    radius_of(new, rounds.pools[r], result.indices) / radius_of(new, rounds.pools[r], full.indices), 6
                ),
                "share_embedded": round(result.share_embedded, 6),
                "share_of_tokens": round(float(rounds.lengths[result.embedded].sum() / rounds.lengths.sum()), 6),
                # the rows that greedy asked for: neither in the pool nor drawn
                "share_read": round((int(result.embedded.sum()) - len(rounds.pools[r]) - drawn) / len(new), 6),
                "audits": [audit.passed for audit in result.audits],
                "allowances": [round(group.allowance, 4) for group in result.groups],
                "seconds": round(result.seconds, 4),
            }
            | settings
        )
    return lines


def radius_of(x: np.ndarray, pool: list[int], picks: np.ndarray) -> float:
    """The largest distance of a row from its nearest center, when the picks have joined the pool."""
    selected = [*pool, *picks.tolist()]
    return float(kcenter(x, 1, selected).sqdist[0] ** 0.5)


def movement(rounds: Rounds) -> list[dict]:
    """A line for each round: how far embeddings moved, and what earlier embeddings would have picked instead."""
    lines, base = [], rounds.embeddings[0]
    at_once = kcenter(base, len(rounds.numbers) * rounds.n_query, rounds.pools[1]).indices
    for r in rounds.numbers:
        old, new = rounds.embeddings[r - 1].astype(np.float64), rounds.embeddings[r].astype(np.float64)
        moved = new - old
        own = moved - moved.mean(axis=0)
        evolved = [*rounds.pools[r][len(rounds.pools[1]) :], *rounds.full[r].indices.tolist()]
        lines.append(
            {
                "round": r,
                "relative_movement": float(np.linalg.norm(moved, axis=1).mean() / np.linalg.norm(new, axis=1).mean()),
                "own_movement": float(np.linalg.norm(own, axis=1).mean() / np.linalg.norm(new, axis=1).mean()),
                "in_common_with_base": in_common(rounds.full[r], base, rounds.pools[r]),
                "in_common_with_last": in_common(rounds.full[r], rounds.embeddings[r - 1], rounds.pools[r]),
                "in_common_with_base_at_once": len(np.intersect1d(at_once[: r * rounds.n_query], evolved)),
                "picks": rounds.n_query,
            }
        )
    return lines


def in_common(full, embeddings: np.ndarray, pool: list[int]) -> int:
    """How many of a round's picks other embeddings would pick, too, from the same pool."""
    return len(np.intersect1d(kcenter(embeddings, len(full.indices), pool).indices, full.indices))


def lines_of(arm: str, seed: int, rounds: Rounds) -> list[dict]:
    """All lines of an arm and seed; those about movement say what they were made on."""
    shared, machine = (
        {"arm": arm, "seed": seed},
        {"rows": len(rounds.lengths), "processor": processor()} | environment(),
    )
    lines = [{"experiment": "movement"} | shared | line | machine for line in movement(rounds)]
    for bound, multiples in BOUNDS.items():
        for multiple, probe, draw in itertools.product(multiples, PROBES, range(DRAWS)):
            found = replayed(rounds, draw, bound=bound, multiple=multiple, probe=probe)
            lines += [{"experiment": "lazy"} | shared | line for line in found]
    return lines


def finished(experiment: str) -> set[tuple[str, int]]:
    """The arms and seeds that have lines."""
    texts = RESULTS.read_text("utf-8").splitlines() if RESULTS.exists() else []
    lines = map(json.loads, texts)
    return {(line["arm"], line["seed"]) for line in lines if line["experiment"] == experiment}


def made(arm: str, seed: int, *settings: str) -> FinishedRun:
    """The arm's run, made now unless it was."""
    folder = OUTPUT / "-".join([arm, str(seed), *(["lazy"] if settings else [])])
    arguments = ["run", str(CONFIGS / f"{arm}.yml"), "--seed", str(seed), "--output_dir", str(folder), "--quiet"]
    if diverseevol([*arguments, *settings]):
        sys.exit(f"{folder.name}: failed; the same command goes on")
    return read_run(folder)


def add(lines: list[dict]) -> None:
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def replay_arm(arm: str, seed: int) -> None:
    """Make the run and its last embeddings, and add the lines of its replays."""
    run = made(arm, seed)
    rows = len(Tokens.load(run.state.tokens_file))
    base = OUTPUT / (f"base-{seed}.npy" if arm == "quickstart" else f"base-{rows}.npy")
    lines = lines_of(arm, seed, rounds_of(run, base_embeddings(run, base)))
    add(lines)
    print(f"{arm}, seed {seed}: {len(lines)} lines", flush=True)


def time_arm(arm: str, seed: int) -> None:
    """Make the run both ways; a line for each round, with its metrics of both."""
    full, lazy = made(arm, seed), made(arm, seed, "--lazy_rounds", "true")
    shared = {"experiment": "runs", "arm": arm, "seed": seed, "rows": len(Tokens.load(full.state.tokens_file))}
    shared |= {"processor": processor()} | environment()
    lines = []
    for r in range(1, full.rounds):
        missed = len(np.setdiff1d(full.state.selected(r), lazy.state.selected(r)))
        lines.append(shared | {"round": r, "missed": missed, "full": full.metrics(r), "lazy": lazy.metrics(r)})
    add(lines)
    print(f"{arm}, seed {seed}: both ways", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS[:-1]))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", action="store_true", help="run each arm both ways instead of replaying it")
    args = parser.parse_args()
    experiment, work = ("runs", time_arm) if args.runs else ("lazy", replay_arm)
    for seed, arm in itertools.product(args.seeds, args.arms):
        if (arm, seed) not in finished(experiment):
            work(arm, seed)


if __name__ == "__main__":
    main()
