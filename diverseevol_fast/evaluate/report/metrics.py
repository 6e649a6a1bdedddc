"""A round's figures with their intervals, as functions of a run and a round; and what may be shown side by side."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .charts import Series, drawable, number
from .seeds import Line, Point, Record, line_of

Read = Callable[[Record, int], Point | None]

VALIDATION_LOSS, HELD_OUT_GROUPS_LOSS = "Validation loss", "Loss on held-out groups"


@dataclass(frozen=True)
class Block:
    """The lines on one data set, which charts may show side by side."""

    title: str  # the data set's name
    lines: list[Line]


@dataclass(frozen=True)
class Metric:
    """A figure of a round that says how good its model is."""

    name: str
    unit: str
    read: Read
    higher_is_better: bool
    label: str  # the name in charts: another one where their font lacks some of the name's characters


def stage_metric(stage: str, key: str) -> Read:
    """A figure of a round's metrics."""

    def read(record: Record, r: int) -> Point | None:
        value = record.metrics[r].get(stage, {}).get(key)
        return None if value is None else Point(value)

    return read


def loss_on(rows: str) -> Read:
    """A loss with its bootstrap interval, where the run recorded one. rows: "validation" or "held_out_groups"."""

    def read(record: Record, r: int) -> Point | None:
        train = record.metrics[r].get("train", {})
        loss = train.get(f"{rows}_loss")
        return None if loss is None else Point(loss, *train.get(f"{rows}_interval", ()))

    return read


def relative_score(test: str) -> Read:
    """A test's Relative Score with its bootstrap interval."""

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
    """The metrics that any of the block's lines have."""
    unit = "nats per response token"
    metrics = [
        Metric(VALIDATION_LOSS, unit, loss_on("validation"), False, VALIDATION_LOSS),
        Metric(HELD_OUT_GROUPS_LOSS, unit, loss_on("held_out_groups"), False, HELD_OUT_GROUPS_LOSS),
    ]
    tests = sorted({test for line in block.lines for record in line.records for test in record.scores})
    for nth, test in enumerate(tests, 1):
        name = f"Relative Score: {test}"
        label = name if drawable(test) else f"Relative Score, test {nth}"
        metrics.append(Metric(name, "100: as good as the reference", relative_score(test), True, label))
    return [metric for metric in metrics if lines_with(block, metric.read)]


def lines_with(block: Block, read: Read) -> list[Line]:
    """The block's lines that have the figure in any round; where only some runs of a line have it, each by itself."""
    result = []
    for line in block.lines:
        alone = [line_of(record) for record in line.records]
        result += [line] if any(line.points(read)) else [one for one in alone if any(one.points(read))]
    return result


def values(line: Line, read: Read) -> list[float | None]:
    """By round, without intervals."""
    return [point.value if point else None for point in line.points(read)]


def spread(line: Line, r: int, name: str) -> Point | None:
    """Mean and range of a measure of the random subsets of round r's size, over all the line's runs."""
    random = [record.diversity["rounds"][r]["random"].get(name) for record in line.records]
    known = [one for one in random if one and one["mean"] is not None]
    if not known:
        return None
    mean = sum(one["mean"] for one in known) / len(known)
    return Point(mean, min(one["low"] for one in known), max(one["high"] for one in known))


def series(sizes: Sequence[int], points: Sequence[Point | None]) -> Series:
    """The points as a chart takes them, from the first to the last round that has the figure.

    Rounds between that lack it are None. Where some points have intervals, the others have intervals of no width.
    """
    known = [index for index, point in enumerate(points) if point]
    if not known:
        return [], [], None, None
    shown = slice(known[0], known[-1] + 1)
    x, y = list(sizes[shown]), [point and point.value for point in points[shown]]
    if not any(point and point.interval for point in points):
        return x, y, None, None
    ends = [point and (point.interval or (point.value, point.value)) for point in points[shown]]
    return x, y, [end and end[0] for end in ends], [end and end[1] for end in ends]


def side(record: Record, r: int, name: str) -> int:
    """1 for a pool that is more diverse than all random subsets of its size, -1 for one that is less, else 0."""
    entry = record.diversity["rounds"][r]
    value, random = entry["values"][name], entry["random"].get(name)
    if value is None or not random:
        return 0
    higher = (value > random["high"]) - (value < random["low"])
    return higher if record.diversity["measures"][name]["higher_is_more_diverse"] else -higher


def caveats(block: Block, shown: Sequence[str]) -> list[str]:
    """Reasons not to compare losses on one data set. shown: the metrics' names."""
    configs = [record.run.config for line in block.lines for record in line.records]
    result = []
    if {VALIDATION_LOSS, HELD_OUT_GROUPS_LOSS}.isdisjoint(shown):
        return result
    if len({config.model_name_or_path for config in configs}) > 1:
        result.append("The runs have different base models: losses of other tokens do not compare.")
    if len({config.model_max_length for config in configs}) > 1:
        result.append(
            "The runs cut rows at different lengths (model_max_length): losses of other tokens do not compare."
        )
    if len({json.dumps(config.held_out_groups, sort_keys=True) for config in configs}) > 1:
        result.append("The runs keep different groups out of their pools: losses of other rows do not compare.")
    if VALIDATION_LOSS not in shown:
        return result
    if len({config.val_set_size for config in configs}) > 1:
        result.append("The runs hold different numbers of rows out: losses of other rows do not compare.")
    if len({config.seed for config in configs if config.val_set_size > 0}) > 1:
        result.append("The seed draws the validation rows: runs of different seeds are tested on different rows.")
    return result


def between(point: Point) -> str:
    """The interval, in brackets; nothing where there is none."""
    return "({} to {})".format(*map(number, point.interval)) if point.interval else ""
