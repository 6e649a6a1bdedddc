"""Tables of bench/results/lazy.jsonl: what lazy rounds embed and miss, and how much evolving embeddings change picks.

    python bench/experiments/lazy/lazy_tables.py

They go into docs/experiments.md between their marks; what they mean is written there by hand.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench" / "experiments"))
from experiment_tables import mean_interval, table  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "lazy.jsonl"
PAGE = ROOT / "docs" / "experiments.md"
MARKS = {
    name: (f"<!-- {name}: written by bench/experiments/lazy/lazy_tables.py -->", f"<!-- end of {name} -->")
    for name in ("lazy rounds", "evolving embeddings")
}
TITLES = {
    "full": "all weights, 2e-5",
    "lora": "LoRA, 1e-4",
    "high": "all weights, 1e-4",
    "quickstart": "quickstart, from random weights",
    "ten": "all weights, 2e-5, ten rounds",
}
DEFAULT = {"bound": "residual", "multiple": 1.5, "probe": 256}


def chosen(lines: list[dict], **values) -> list[dict]:
    """The lines that have these values."""
    return [line for line in lines if all(line[key] == value for key, value in values.items())]


def arms_of(lines: list[dict]) -> list[str]:
    return [arm for arm in TITLES if any(line["arm"] == arm for line in lines)]


def equal_rounds(lines: list[dict]) -> tuple[int, int]:
    """In how many rounds of all (an arm, a seed, a round) every draw of the probe gave the picks of the full way."""
    missed: dict[tuple, int] = {}
    for line in lines:
        key = line["arm"], line["seed"], line["round"]
        missed[key] = missed.get(key, 0) + line["missed"]
    return sum(count == 0 for count in missed.values()), len(missed)


def share_interval(equal: int, count: int) -> str:
    """The 95 % interval of a share (Clopper and Pearson 1934)."""
    low = stats.beta.ppf(0.025, equal, count - equal + 1) if equal else 0.0
    high = stats.beta.ppf(0.975, equal + 1, count - equal) if equal < count else 1.0
    return f"{equal} of {count} ({low:.0%} to {high:.0%})"


def over_seeds(lines: list[dict], key: str) -> str:
    """The mean over seeds, each the mean of its lines, with the half of its 95 % interval; in per cent."""
    seeds = sorted({line["seed"] for line in lines})
    means = [float(np.mean([line[key] for line in chosen(lines, seed=seed)])) for seed in seeds]
    if len(means) == 1:
        return f"{means[0]:.1%}"
    mean, half = mean_interval(means)
    return f"{100 * mean:.1f} ± {100 * half:.1f} %"


def summary(lines: list[dict]) -> list[str]:
    """The cells about some selections."""
    picks = sum(line["missed"] for line in lines)
    failed = sum(not all(line["audits"]) for line in lines)
    ratios = [line["radius_ratio"] for line in lines]
    return [
        share_interval(*equal_rounds(lines)),
        f"{picks} in {len(lines)} selections",
        over_seeds(lines, "share_embedded"),
        over_seeds(lines, "share_read"),
        f"{max(ratios):.3f}",
        f"{failed} of {len(lines)}",
    ]


HEADER = [
    "rounds with all picks equal",
    "picks missed",
    "embedded",
    "asked for",
    "largest radius ratio",
    "audits failed",
]


def by_round(lines: list[dict]) -> str:
    """Each arm and round, with the default multiple and probe."""
    rows = []
    for arm in arms_of(lines):
        of_arm = chosen(lines, arm=arm, **DEFAULT)
        rounds = sorted({line["round"] for line in of_arm})
        rows += [[TITLES[arm], str(r), *summary(chosen(of_arm, round=r))] for r in rounds]
    return table(["model", "round", *HEADER], rows)


def by_setting(lines: list[dict]) -> str:
    """Each bound, multiple and probe, over all rounds of the real model."""
    lines = [line for line in lines if line["arm"] in ("full", "lora", "high")]
    settings = sorted(
        {(line["bound"], line["multiple"], line["probe"]) for line in lines}, key=lambda s: (s[0] == "drift", s)
    )
    rows = []
    for bound, multiple, probe in settings:
        found = chosen(lines, bound=bound, multiple=multiple, probe=probe)
        rows.append([f"{bound} x {multiple:g}", str(probe), *summary(found)])
    return table(["bound", "probe", *HEADER], rows)


def movement(lines: list[dict]) -> str:
    """How far embeddings move, and what earlier ones would have picked."""
    rows = []
    for arm in arms_of(lines):
        for r in sorted({line["round"] for line in chosen(lines, arm=arm)}):
            found = chosen(lines, arm=arm, round=r)
            common = [counts(found, key) for key in ("in_common_with_last", "in_common_with_base")]
            at_once = counts(found, "in_common_with_base_at_once", r)
            moved = [over_seeds(found, key) for key in ("relative_movement", "own_movement")]
            rows.append([TITLES[arm], str(r), *moved, *common, at_once])
    return table(
        ["model", "round", "movement", "own movement", "by the last round's", "by the base model's", "at once"], rows
    )


def counts(lines: list[dict], key: str, rounds: int = 1) -> str:
    """Each seed's picks in common, of how many."""
    values = [str(line[key]) for line in sorted(lines, key=lambda line: line["seed"])]
    return f"{', '.join(values)} of {rounds * lines[0]['picks']}"


def tables(lines: list[dict]) -> dict[str, str]:
    """The text between each pair of marks."""
    lazy, moved = chosen(lines, experiment="lazy"), chosen(lines, experiment="movement")
    by_training = "#### By training and round: 1.5 times the largest residual of 256 rows"
    settings = "#### By bound, multiple and probe, over all trainings of the pretrained model"
    return {
        "lazy rounds": f"{by_training}\n\n{by_round(lazy)}\n\n{settings}\n\n{by_setting(lazy)}",
        "evolving embeddings": movement(moved),
    }


def main() -> None:
    lines = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables(lines).items():
        first, last = MARKS[name]
        before, rest = page.split(first)
        page = f"{before}{first}\n\n{text}\n\n{last}{rest.split(last)[1]}"
        print(text)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
