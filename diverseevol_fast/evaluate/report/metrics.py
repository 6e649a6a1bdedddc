"""What a report reads off runs, round by round: figures with their intervals, and what may be shown side by side."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .charts import Series, drawable, number
from .seeds import Line, Point, Record, line_of

Read = Callable[[Record, int], Point | None]

VALIDATION_LOSS, HELD_OUT_GROUPS_LOSS = "Validation loss", "Loss on held-out groups"


@dataclass(frozen=True)
class Block:
    """The lines on one data set: what charts may show side by side."""

    title: str  # the data set's name
    lines: list[Line]


@dataclass(frozen=True)
class Metric:
    """A figure of a round that says how good its model is."""

    name: str
    unit: str
    read: Read
    higher_is_better: bool
    label: str  # the name, or what stands for it in charts, whose font lacks some of its characters


def stage_metric(stage: str, key: str) -> Read:
    """A figure of a round's metrics."""

    def read(record: Record, r: int) -> Point | None:
        value = record.metrics[r].get(stage, {}).get(key)
        return None if value is None else Point(value)

    return read


def loss_on(rows: str) -> Read:
    """With its bootstrap interval, where the run recorded one. rows: "validation" or "held_out_groups"."""

    def read(record: Record, r: int) -> Point | None:
        train = record.metrics[r].get("train", {})
        loss = train.get(f"{rows}_loss")
        return None if loss is None else Point(loss, *train.get(f"{rows}_interval", ()))

    return read


def relative_score(test: str) -> Read:
    """With its bootstrap interval."""

    def read(record: Record, r: int) -> Point | None:
        scores = record.scores.get(test, {}).get(r)
        return None if scores is None else Point(scores.relative_score, scores.low, scores.high)

    return read


def measure(name: str) -> Read:
    """A measure of the pool's diversity."""

    def read(record: Record, r: int) -> Point | None:
        value = record.diversity["rounds"][r]["values"][name]
        return None if value is None else Point(value)

    return read


def metrics_of(block: Block) -> list[Metric]:
    """What any of the block's lines were tested by."""
    tests = sorted({test for line in block.lines for record in line.records for test in record.scores})
    unit = "nats per response token"
    known = [
        Metric(name, unit, loss_on(rows), False, name)
        for name, rows in ((VALIDATION_LOSS, "validation"), (HELD_OUT_GROUPS_LOSS, "held_out_groups"))
    ]
    for place, test in enumerate(tests, 1):
        name = f"Relative Score: {test}"
        label = name if drawable(test) else f"Relative Score, test {place}"
        known.append(Metric(name, "100: as good as the reference", relative_score(test), True, label))
    return [metric for metric in known if lines_with(block, metric.read)]


def lines_with(block: Block, read: Read) -> list[Line]:
    """The block's lines that have the figure in any round; where only some runs of a line have it, each by itself."""
    found = []
    for line in block.lines:
        alone = [line_of(record) for record in line.records]
        found += [line] if any(line.points(read)) else [one for one in alone if any(one.points(read))]
    return found


def values(line: Line, read: Read) -> list[float | None]:
    """By round, without intervals."""
    return [point.value if point else None for point in line.points(read)]


def spread(line: Line, r: int, name: str) -> Point | None:
    """Mean and range of a measure of the random subsets of round r's size, over all the line's runs."""
    drawn = [record.diversity["rounds"][r]["random"].get(name) for record in line.records]
    known = [one for one in drawn if one and one["mean"] is not None]
    if not known:
        return None
    mean = sum(one["mean"] for one in known) / len(known)
    return Point(mean, min(one["low"] for one in known), max(one["high"] for one in known))


def series(sizes: Sequence[int], points: Sequence[Point | None]) -> Series:
    """What a chart takes: None at rounds that lack the figure, which are left out before the first and after the last.

    A point without an interval has one of no width where others have one.
    """
    known = [place for place, point in enumerate(points) if point]
    if not known:
        return [], [], None, None
    kept = slice(known[0], known[-1] + 1)
    x, y = list(sizes[kept]), [point and point.value for point in points[kept]]
    if all(points[place].low is None for place in known):
        return x, y, None, None
    lows = [point and (point.value if point.low is None else point.low) for point in points[kept]]
    highs = [point and (point.value if point.high is None else point.high) for point in points[kept]]
    return x, y, lows, highs


def side(record: Record, r: int, name: str) -> int:
    """1 for a pool that is more diverse than all random subsets of its run, -1 for one that is less, else 0."""
    entry = record.diversity["rounds"][r]
    value, random = entry["values"][name], entry["random"].get(name)
    if value is None or not random:
        return 0
    side = (value > random["high"]) - (value < random["low"])
    return side if record.diversity["measures"][name]["higher_is_more_diverse"] else -side


def caveats(block: Block, shown: Sequence[str]) -> list[str]:
    """What keeps losses on one data set from being compared. shown: the metrics' names."""
    configs = [record.run.config for line in block.lines for record in line.records]
    found = []
    if {VALIDATION_LOSS, HELD_OUT_GROUPS_LOSS}.isdisjoint(shown):
        return found
    if len({config.model_name_or_path for config in configs}) > 1:
        found.append("The runs have different base models: losses of other tokens do not compare.")
    if len({config.model_max_length for config in configs}) > 1:
        found.append(
            "The runs cut rows at different lengths (model_max_length): losses of other tokens do not compare."
        )
    if len({json.dumps(config.held_out_groups, sort_keys=True) for config in configs}) > 1:
        found.append("The runs keep different groups out of their pools: losses of other rows do not compare.")
    if VALIDATION_LOSS not in shown:
        return found
    if len({config.val_set_size for config in configs}) > 1:
        found.append("The runs hold different numbers of rows out: losses of other rows do not compare.")
    if len({config.seed for config in configs if config.val_set_size > 0}) > 1:
        found.append("The seed draws the validation rows: runs of different seeds are tested on different rows.")
    return found


def between(point: Point) -> str:
    """The interval, in brackets; nothing where there is none."""
    return "" if point.low is None else f"({number(point.low)} to {number(point.high)})"
