"""What came out of the runs, in sentences made by rule: which is lower or higher, or that they are not told apart."""

from collections.abc import Sequence

from .charts import number
from .metrics import Block, Metric, Read, between, caveats, lines_with, measure, metrics_of, side, spread
from .seeds import Line, Point, strategy, t_interval

STRATEGIES = {
    "KCenterSampling": "K-Center", "OneShotKCenterSampling": "one-shot K-Center",
    "StaticKCenterSampling": "static K-Center", "RandomSampling": "random", "LeastConfidence": "least confidence",
    "MarginSampling": "margin", "EntropySampling": "entropy", "VendiSampling": "Vendi",
}  # fmt: skip
KINDS = {
    "family": "task families", "task": "tasks", "category": "categories", "source": "sources", "dataset": "data sets",
    "type": "types",
}  # fmt: skip
NO_TEST = (
    "Nothing says which pool makes the better model: no rows were held out (val_set_size), and no judgements were "
    "given (--judgements)."
)
ONE_SEED = (
    "The intervals know of the rows or questions, not of the seed: with one seed for each strategy, another seed may "
    "turn a difference round."
)

RADIUS = "covering_radius"

Found = tuple[str, Line, int]  # how a line is called, the line, and the round at which it is compared


def verdict(blocks: Sequence[Block]) -> list[str]:
    """What the runs say, a sentence or two for each line of the list.

    Lines on one data set are compared at the largest pool that all have. Two figures are told apart where their 95%
    intervals have no value in common; of the same seeds, where the interval of the seeds' differences leaves 0 out.
    """
    parts = [(block, _alone(block.lines[0]) if len(block.lines) == 1 else _compared(block)) for block in blocks]
    if len(blocks) == 1:
        return parts[0][1]
    return [
        *(f"{block.title}: {sentence}" for block, sentences in parts for sentence in sentences),
        f"These runs are on {len(blocks)} different data sets ({', '.join(block.title for block in blocks)}). "
        "Figures of different data sets do not compare, so each data set has charts of its own.",
    ]


def told_apart(one: Point, other: Point) -> bool | None:
    """Whether the two intervals have no value in common; None where one of the figures has no interval."""
    if one.low is None or other.low is None:
        return None
    return one.high < other.low or other.high < one.low


def _alone(line: Line) -> list[str]:
    block, last = Block("", [line]), line.rounds - 1
    found: list[Found] = [(_short_name(line), line, last)]
    rounds = f"{line.rounds} rounds, from {line.sizes[0]:,} to {line.sizes[last]:,}" if last else f"{line.sizes[0]:,}"
    sentences = [f"{_full_name(line)}: {rounds} rows in the pool.", *_radius(found), *_families(found)]
    metrics = metrics_of(block)
    for metric in metrics:
        (shown, *_) = lines_with(block, metric.read)
        known = [(r, point) for r, point in enumerate(shown.points(metric.read)) if point]
        (first, before), (end, after) = known[0], known[-1]
        if first == end:
            sentences.append(
                f"{metric.name}: {_told(after)} in round {end}; no other round has one, so there is nothing to "
                "compare it with."
            )
            continue
        best = (end, after) if (after.value > before.value) == metric.higher_is_better else (first, before)
        worse = (first, before) if best[0] == end else (end, after)
        apart = _apart((shown, best[0]), (shown, worse[0]), metric.read)
        sentences.append(_of_two(metric, f"round {best[0]}", best[1], f"round {worse[0]}", worse[1], apart))
    return sentences if metrics else [*sentences, NO_TEST]


def _compared(block: Block) -> list[str]:
    names = _names(block.lines)
    found = _at_common_size(names, block.lines)
    if not found:
        return ["The runs have no pool of the same size, so their figures are not compared."]
    size = found[0][1].sizes[found[0][2]]
    which = ", ".join(_full_name(line) if name == _short_name(line) else name for name, line, _ in found)
    last = all(r == line.rounds - 1 for _, line, r in found)
    sentences = [
        f"Compared at {size:,} rows in the pool{', the last round of each' if last else ''}: {which}.",
        *_radius(found), *_families(found),
    ]  # fmt: skip
    metrics = metrics_of(block)
    for metric in metrics:
        sentences.append(_by_metric(metric, block, names))
    if not metrics:
        return [*sentences, NO_TEST]
    several = any(len(line.records) > 1 for line in block.lines)
    return sentences if several else [*sentences, ONE_SEED]


def _by_metric(metric: Metric, block: Block, names: Sequence[str]) -> str:
    same_seeds = len({frozenset(record.run.config.seed for record in line.records) for line in block.lines}) == 1
    against = [why for why in caveats(block, [metric.name]) if not (same_seeds and why.startswith("The seed "))]
    if against:
        return f"{metric.name}: not compared. {against[0]}"
    with_it = [(name, line) for name, line in zip(names, block.lines, strict=True) if any(line.points(metric.read))]
    if len(with_it) < 2:
        return f"{metric.name}: not compared, fewer than two of the strategies have it."
    found = _at_common_size(*zip(*with_it, strict=True), read=metric.read)
    if not found:
        return f"{metric.name}: not compared, the runs have it at no pool of the same size."
    sign = -1 if metric.higher_is_better else 1
    ordered = sorted(
        ((name, line.points(metric.read)[r], line, r) for name, line, r in found), key=lambda one: sign * one[1].value
    )
    best, *others = ordered
    apart = [_apart(best[2:], other[2:], metric.read) for other in others]
    if len(others) == 1:
        return _of_two(metric, best[0], best[1], others[0][0], others[0][1], apart[0])
    told = f"{metric.name}: the {'highest' if metric.higher_is_better else 'lowest'} is that of {best[0]}, "
    told += f"{_told(best[1])}."
    for outcome, words in ((True, "Told apart from it"), (False, "Not told apart from it"), (None, "No intervals")):
        theirs = [
            f"{name} {_told(point)}" for (name, point, *_), way in zip(others, apart, strict=True) if way is outcome
        ]
        told += f" {words}: {', '.join(theirs)}." if theirs else ""
    return told


def _of_two(metric: Metric, best: str, point: Point, other: str, theirs: Point, apart: bool | None) -> str:
    if apart:
        way = "higher" if metric.higher_is_better else "lower"
        return f"{metric.name}: {way} with {best}, {_told(point)} against {_told(theirs)} with {other}."
    both = f"{best} {_told(point)}, {other} {_told(theirs)}"
    if apart is None:
        return f"{metric.name}: {both}; without intervals nothing says whether the difference is more than chance."
    return f"{metric.name}: not told apart, {both}."


def _apart(one: tuple[Line, int], other: tuple[Line, int], read: Read) -> bool | None:
    """Of lines with the same seeds, by the differences seed by seed; otherwise by the two intervals."""
    (line, r), (another, s) = one, other
    theirs = {record.run.config.seed: read(record, s) for record in another.records}
    pairs = [(read(record, r), theirs.get(record.run.config.seed)) for record in line.records]
    if len(pairs) > 1 and len(pairs) == len(theirs) and not any(None in pair for pair in pairs):
        difference = t_interval([mine.value - other.value for mine, other in pairs])
        return difference.low > 0 or difference.high < 0
    return told_apart(line.points(read)[r], another.points(read)[s])


def _radius(found: Sequence[Found]) -> list[str]:
    """What K-Center minimises, beside random subsets."""
    told = []
    for name, line, r in found:
        point, random = line.points(measure(RADIUS))[r], spread(line, r, RADIUS)
        if point:
            beside = f", {_beside(line, r)}, {between(random)[1:-1]}" if random else ""
            told.append(f"{name} {_told(point)}{beside}")
    return [f"Covering radius, the largest distance of a candidate to the pool: {'; '.join(told)}."] if told else []


def _beside(line: Line, r: int) -> str:
    """How the radii of a line's pools lie beside those of random subsets."""
    sides = {side(record, r, RADIUS) for record in line.records}
    seeds = f"for each of {len(line.records)} seeds " if len(line.records) > 1 else ""
    random = f"{line.records[0].diversity['random']} random subsets of that size"
    if len(sides) > 1:
        return f"which beside {random} differs from seed to seed"
    return {1: f"{seeds}less than each of {random}", -1: f"{seeds}more than each of {random}",
            0: f"{seeds}among {random}"}[sides.pop()]  # fmt: skip


def _families(found: Sequence[Found]) -> list[str]:
    """How many kinds of rows the pools have, where all rows say theirs under one key."""
    keys = {record.picked.kind_key for _, line, _ in found for record in line.records}
    if len(keys) > 1 or None in keys:
        return []
    kinds = KINDS.get(key := keys.pop(), f"values of “{key}”")
    all_kinds = {record.picked.all_kinds for _, line, _ in found for record in line.records}
    most = f" of {_range(all_kinds)}"
    told = [
        f"{name}{' reached' if place == 0 else ''} {_range({record.picked.kinds[r] for record in line.records})}"
        + (f"{most} {kinds}" if place == 0 else "")
        for place, (name, line, r) in enumerate(found)
    ]
    sentence = f"{', '.join(told)}."
    by_strategy = found[0][0] == _short_name(found[0][1])  # a run's name stays as it is
    return [sentence[0].upper() + sentence[1:] if by_strategy else sentence]


def _range(numbers: set[int]) -> str:
    return " to ".join(str(one) for one in dict.fromkeys((min(numbers), max(numbers))))


def _at_common_size(names: Sequence[str], lines: Sequence[Line], read: Read | None = None) -> list[Found]:
    """The lines at the largest pool that all have, and of which all have the figure; none where there is none."""
    places = [{size: r for r, size in enumerate(line.sizes) if read is None or line.points(read)[r]} for line in lines]
    common = set.intersection(*map(set, places))
    if not common:
        return []
    size = max(common)
    return [(name, line, place[size]) for name, line, place in zip(names, lines, places, strict=True)]


def _names(lines: Sequence[Line]) -> list[str]:
    """By strategy, where each line has another one."""
    names = [_short_name(line) for line in lines]
    return names if len(set(names)) == len(names) else [line.name for line in lines]


def _short_name(line: Line) -> str:
    name, *more = strategy(line.records[0].run).split(", ")
    return " ".join([STRATEGIES.get(name, name), *more])


def _full_name(line: Line) -> str:
    several = len(line.records)
    return f"{_short_name(line)} ({f'{several} seeds' if several > 1 else line.name})"


def _told(point: Point) -> str:
    return f"{number(point.value)} {between(point)}".strip()
