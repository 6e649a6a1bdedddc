"""Tables of bench/results/pretrained.jsonl: losses, differences from random by pairs, how many seeds would show one.

    python bench/experiments/pretrained/pretrained_tables.py

They go into docs/experiments.md between their marks; what they mean is written there by hand.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "bench" / "experiments"))
from experiment_tables import mean_interval, table  # noqa: E402
from run_pretrained import ARMS, RESULTS, finished_lines  # noqa: E402

PAGE = ROOT / "docs" / "experiments.md"
MARKS = "<!-- tables: written by bench/experiments/pretrained/pretrained_tables.py -->", "<!-- end of these tables -->"
AT_ONCE = ("one_shot", "static")
OTHERS = tuple(arm for arm in ARMS if arm != "random")
SMALLEST = 0.02  # nats: the difference that one would like to see
POWER = 0.8


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm 1979): reject those below the level."""
    corrected, highest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p))
        corrected[name] = highest
    return corrected


def seeds_needed(deviation: float, difference: float = SMALLEST) -> int:
    """How many pairs a two-sided paired t-test at 5 % needs to find a difference with a probability of POWER.

    deviation: the standard deviation of the differences by pairs.
    """
    for pairs in range(2, 100_000):
        # t squared has the F distribution, whose noncentral tail scipy computes for every shift; that of t it does not.
        limit = stats.f.ppf(0.95, 1, pairs - 1)
        if stats.ncf.sf(limit, 1, pairs - 1, pairs * (difference / deviation) ** 2) >= POWER:
            return pairs
    raise ValueError(f"more than 100,000 pairs for a difference of {difference} with a deviation of {deviation}")


class Lines:
    """The lines by arm and seed; only seeds that every arm has."""

    def __init__(self, lines: list[dict]):
        self._lines = {(line["arm"], line["seed"]): line for line in lines}
        by_arm = [{seed for arm, seed in self._lines if arm == wanted} for wanted in ARMS]
        self.seeds = sorted(set.intersection(*by_arm))

    def values(self, arm: str, key: str) -> np.ndarray:
        """[seeds]: "validation_loss", "held_out_groups_loss", or the mean loss of a source's validation rows."""
        return np.array([self._value(self._lines[arm, seed], key) for seed in self.seeds])

    def _value(self, line: dict, key: str) -> float:
        if key in line:
            return line[key]
        total, count = line["loss_by_source"][key]
        return total / count

    def pools(self, arm: str) -> list[dict[str, int]]:
        """[seeds]: how many rows of each source the last pool has; a source without a row is not there."""
        return [self._lines[arm, seed]["pool_by_source"] for seed in self.seeds]

    def sources(self) -> list[str]:
        """The sources of validation rows, in every seed."""
        return sorted(set.intersection(*(set(line["loss_by_source"]) for line in self._lines.values())))

    def differences(self, arm: str, key: str, other: str = "random") -> np.ndarray:
        """[seeds]: the arm less another, which trains on as many rows and has the same validation rows."""
        return self.values(arm, key) - self.values(other, key)


def spread(values: np.ndarray, digits: int = 3) -> str:
    mean, half = mean_interval(list(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def p_value(differences: np.ndarray) -> float:
    """Of a two-sided t-test by pairs."""
    return float(stats.ttest_1samp(differences, 0).pvalue)


def losses(lines: Lines) -> str:
    """Every arm: losses on the validation rows and on the sources that are in no pool, and the pool itself."""
    rows = []
    for arm in ARMS:
        cells = [spread(lines.values(arm, key)) for key in ("validation_loss", "held_out_groups_loss")]
        rows.append(
            [
                arm,
                *cells,
                spread(lines.values(arm, "groups_in_pool"), 1),
                spread(lines.values(arm, "tokens_in_pool"), 0),
            ]
        )
    return table(
        ["selection", "validation loss", "kept-out sources' loss", "groups in the pool", "tokens in the pool"], rows
    )


def compared(lines: Lines) -> str:
    """Less random's, by pairs, with p-values corrected over the selections of a column."""
    return _compared(lines, "less random's", {arm: (arm, "random") for arm in OTHERS})


def rounds(lines: Lines) -> str:
    """K-Center round by round, less K-Center at once, by pairs, corrected in the same way."""
    return _compared(lines, "kcenter less", {other: ("kcenter", other) for other in AT_ONCE})


def _compared(lines: Lines, title: str, pairs: dict[str, tuple[str, str]]) -> str:
    """The differences of each named pair of arms."""
    rows = {name: [name] for name in pairs}
    for key in ("validation_loss", "held_out_groups_loss"):
        differences = {name: lines.differences(arm, key, other) for name, (arm, other) in pairs.items()}
        corrected = holm({name: p_value(values) for name, values in differences.items()})
        for name, values in differences.items():
            rows[name] += [spread(values), f"{corrected[name]:.3f}"]
    return table([title, "validation loss", "p (Holm)", "kept-out sources' loss", "p (Holm)"], list(rows.values()))


def by_source(lines: Lines) -> str:
    """Less random's on the validation rows of each source, by pairs; "*": p below 0.05, corrected over the table."""
    differences = {f"{arm} {source}": lines.differences(arm, source) for arm in OTHERS for source in lines.sources()}
    corrected = holm({name: p_value(values) for name, values in differences.items()})
    cells = {name: spread(values) + " *" * (corrected[name] < 0.05) for name, values in differences.items()}
    rows = [[arm, *(cells[f"{arm} {source}"] for source in lines.sources())] for arm in OTHERS]
    return table(["less random's", *lines.sources()], rows)


def pools(lines: Lines) -> str:
    """How many rows of each source are in the last pool, the mean over seeds."""
    sources = sorted({name for arm in ARMS for counts in lines.pools(arm) for name in counts})
    means = {arm: [np.mean([counts.get(name, 0) for counts in lines.pools(arm)]) for name in sources] for arm in ARMS}
    return table(["selection", *sources], [[arm, *(f"{mean:.1f}" for mean in means[arm])] for arm in ARMS])


def power(lines: Lines) -> str:
    """What the seeds so far say of how many are needed."""
    rows = []
    for arm in OTHERS:
        deviation = float(np.std(lines.differences(arm, "validation_loss"), ddof=1))
        rows.append(
            [arm, f"{deviation:.3f}", f"{seeds_needed(deviation):,}", f"{seeds_needed(deviation, 5 * SMALLEST):,}"]
        )
    header = [
        "less random's",
        "standard deviation over seeds",
        f"seeds for {SMALLEST} nats",
        f"for {5 * SMALLEST} nats",
    ]
    return table(header, rows)


def tables(lines: Lines) -> str:
    parts = {
        f"100 rows out of 1,700, {len(lines.seeds)} seeds": losses,
        "Less random's, by pairs": compared,
        "K-Center round by round, less K-Center at once, by pairs": rounds,
        "Less random's by source of the validation rows (*: p < 0.05, Holm over this table)": by_source,
        "Rows of each source in the pool": pools,
        "How many seeds would show a difference": power,
    }
    return "\n\n".join(f"#### {title}\n\n{make(lines)}" for title, make in parts.items())


def picture(lines: Lines) -> Figure:
    """Less random's by pairs: the mean over seeds with its 95 % interval, and every seed as a dot."""
    titles = {"validation_loss": "validation rows", "held_out_groups_loss": "kept-out sources"}
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for place, arm in enumerate(OTHERS):
            values = lines.differences(arm, key)
            mean, half = mean_interval(list(values))
            axes.plot(values, [place] * len(values), ".", color="tab:gray", markersize=4)
            axes.errorbar(mean, place, xerr=half, fmt="o", color="tab:blue", capsize=3, markersize=5)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(f"Loss on {title}, less random's", fontsize=9)
        axes.set_xlabel("nats", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_yticks(range(len(OTHERS)), OTHERS)
        axes.set_ylim(len(OTHERS) - 0.5, -0.5)
    return figure


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    lines = Lines(finished_lines())
    picture(lines).savefig(RESULTS.with_suffix(".png"), dpi=130)
    page = tables(lines)
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{page}\n\n{MARKS[1]}{after}", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
