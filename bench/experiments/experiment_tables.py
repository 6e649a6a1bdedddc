"""Tables and charts of bench/results/experiments.jsonl: means over seeds, with the interval that so few seeds allow."""

from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student

from diverseevol_fast.evaluate.report.charts import lines as line_chart

BUDGET = (
    "kcenter",
    "random",
    "least_confidence",
    "margin",
    "entropy",
    "vendi_highest",
    "vendi_lowest",
    "one_shot",
    "static",
)
INITIAL = ("p0_10", "p0_50", "p0_100", "p0_200")
SMALL = ("hundred", "hundred_random")


def mean_interval(values: list[float]) -> tuple[float, float]:
    """The mean of independent values, and half the width of its 95 % interval (Student's t; NaN for one value)."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5 if n > 1 else float("nan")
    return float(np.mean(values)), float(half)


class Found:
    """The lines by experiment and seed."""

    def __init__(self, lines: list[dict]):
        self.rounds = defaultdict(dict)  # (experiment, seed) -> {round: line}
        for line in lines:
            self.rounds[line["experiment"], line["seed"]][line["round"]] = line

    def seeds(self, experiment: str) -> list[int]:
        return sorted(seed for name, seed in self.rounds if name == experiment)

    def values(self, experiment: str, key: str, r: int = -1) -> list[float]:
        """A value of round r (-1: the last) for each seed; "diversity.vendi" reaches inside."""
        found = []
        for seed in self.seeds(experiment):
            value = self.rounds[experiment, seed]
            value = value[max(value) if r < 0 else r]
            for part in key.split("."):
                value = value[part]
            found.append(value)
        return found

    def difference(self, experiment: str, other: str, key: str) -> list[float]:
        """Seed by seed, for the seeds that both have: the same held-out rows and base model."""
        if self.seeds(experiment) != self.seeds(other):
            raise ValueError(f"{experiment}: seeds {self.seeds(experiment)}, but {other}: {self.seeds(other)}")
        pairs = zip(self.values(experiment, key), self.values(other, key), strict=True)
        return [one - two for one, two in pairs]


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def told(values: list[float], digits: int = 3) -> str:
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def less(found: Found, name: str, key: str, digits: int = 3, other: str = "random") -> str:
    """The difference from `other`, seed by seed; nothing for itself."""
    return "" if name == other else told(found.difference(name, other, key), digits)


def tables(lines: list[dict]) -> str:
    """All tables, as Markdown."""
    found = Found(lines)
    parts = [
        ("Every strategy, the same budget: 100 rows and three rounds of 50", equal_budget),
        ("Round by round", by_round),
        ("How diverse the final pools are, in a sentence encoder's embeddings", diversity),
        ("The size of the initial pool, 250 rows in the end", initial_pool),
        ("A data set of 100 rows: 10 rows and three rounds of 10", small_data),
    ]
    return "\n\n".join(f"### {title}\n\n{make(found)}" for title, make in parts)


def equal_budget(found: Found) -> str:
    rows = []
    for name in BUDGET:
        row = [name, told(found.values(name, "held_out_loss"))]
        for key in ("held_out_loss", "unseen_loss"):
            row.append(less(found, name, key))
            if key == "held_out_loss":
                row.append(told(found.values(name, "unseen_loss")))
        rows.append([*row, told(found.values(name, "families"), 1), less(found, name, "families", 1)])
    return table(
        [
            "strategy",
            "held-out loss",
            "less random's",
            "unseen families' loss",
            "less random's",
            "families of 31",
            "less random's",
        ],
        rows,
    )


def by_round(found: Found) -> str:
    rows = []
    for r in range(4):
        pool = found.values("random", "pool", r)[0]
        cells = [told(found.values(name, "held_out_loss", r)) for name in ("kcenter", "random")]
        families = [told(found.values(name, "families", r), 1) for name in ("kcenter", "random")]
        rows.append([str(r), str(pool), *cells, *families])
    header = ["round", "pool", "kcenter: held-out loss", "random: held-out loss", "kcenter: families"]
    return table([*header, "random: families"], rows)


def diversity(found: Found) -> str:
    measures = {"vendi": 1, "covering_radius": 3, "chamfer": 3, "novelsum": 3}  # and digits
    rows = [
        [name, *(told(found.values(name, f"diversity.{key}"), digits) for key, digits in measures.items())]
        for name in BUDGET
    ]
    random = [told(found.values("random", f"diversity_of_random.{key}"), digits) for key, digits in measures.items()]
    apart = [
        [name, *(less(found, name, f"diversity.{key}", max(digits, 2)) for key, digits in measures.items())]
        for name in BUDGET
        if name != "random"
    ]
    header = ["strategy", "Vendi Score", "covering radius", "Chamfer", "NovelSum"]
    both = [table(header, [*rows, ["random subsets", *random]]), "Less random's, seed by seed:", table(header, apart)]
    return "\n\n".join(both)


def initial_pool(found: Found) -> str:
    rows = []
    for name in INITIAL:
        first = found.values(name, "pool", 0)[0]
        rows.append(
            [
                str(first),
                told(found.values(name, "held_out_loss")),
                less(found, name, "held_out_loss", other="p0_200"),
                told(found.values(name, "unseen_loss")),
                told(found.values(name, "families"), 1),
            ]
        )
    return table(["initial pool", "held-out loss", "less that of 200", "unseen families' loss", "families of 31"], rows)


def small_data(found: Found) -> str:
    rows = [
        [
            name,
            told(found.values(name, "held_out_loss")),
            less(found, name, "held_out_loss", other=SMALL[1]),
            told(found.values(name, "families"), 1),
        ]
        for name in SMALL
    ]
    return table(["strategy", "held-out loss", "less random's", "families"], rows)


def charts(lines: list[dict]) -> dict[str, Figure]:
    """Held-out loss, unseen families' loss and Vendi Score against the pool's size, for a few strategies."""
    found = Found(lines)
    shown = [
        name for name in ("kcenter", "random", "one_shot", "static", "entropy", "least_confidence") if found.seeds(name)
    ]
    wanted = {
        "held_out": ("held_out_loss", "held-out loss (nats)", "Held-out loss"),
        "unseen": ("unseen_loss", "loss on unseen families (nats)", "Families that are in no pool"),
        "vendi": ("diversity.vendi", "Vendi Score", "Diversity of the pool"),
    }
    made = {}
    for name, (key, label, title) in wanted.items():
        series = {}
        for experiment in shown:
            pools = [found.values(experiment, "pool", r)[0] for r in range(4)]
            points = [mean_interval(found.values(experiment, key, r)) for r in range(4)]
            few = len(found.seeds(experiment)) < 2
            low = None if few else [m - h for m, h in points]
            high = None if few else [m + h for m, h in points]
            series[experiment] = (pools, [m for m, _ in points], low, high)
        made[name] = line_chart(series, "rows in the pool", label, title)
    return made
