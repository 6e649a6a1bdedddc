"""What the runs show, in sentences made by rule: which figure is lower or higher, or that they are not told apart."""

from collections.abc import Sequence
from typing import NamedTuple

from ...strategies import STRATEGIES
from .charts import number
from .metrics import Block, Metric, Read, between, caveats, lines_with, measure, metrics_of, side, spread
from .seeds import Line, Point, strategy, t_interval

KINDS = {
    "family": "task families",
    "task": "tasks",
    "category": "categories",
    "source": "sources",
    "dataset": "data sets",
    "type": "types",
}
NO_TEST = (
    "Nothing says which pool makes the better model: no rows were held out (val_set_size), and no judgements were "
    "given."
)
ONE_SEED = (
    "The intervals know of the rows or questions, not of the seed: with one seed for each strategy, another seed may "
    "turn a difference round."
)

RADIUS = "covering_radius"


class Entry(NamedTuple):
    """A line of a comparison."""

    name: str  # in the sentences
    line: Line
    r: int  # the round at which it is compared


def verdict(blocks: Sequence[Block]) -> list[str]:
    """What the runs show, in sentences.

    Lines on one data set are compared at the largest pool size that all have. Two figures are told apart where their
    95% intervals do not overlap; of the same seeds, where the interval of the differences seed by seed is without 0.
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
    """Whether the two intervals do not overlap; None where one of the figures has no interval."""
    if not one.interval or not other.interval:
        return None
    (low, high), (other_low, other_high) = one.interval, other.interval
    return high < other_low or other_high < low


def _alone(line: Line) -> list[str]:
    block, last = Block("", [line]), line.rounds - 1
    entries = [Entry(_short_name(line), line, last)]
    rounds = f"{line.rounds} rounds, from {line.sizes[0]:,} to {line.sizes[last]:,}" if last else f"{line.sizes[0]:,}"
    sentences = [f"{_full_name(line)}: {rounds} rows in the pool.", *_radius(entries), *_families(entries)]
    metrics = metrics_of(block)
    sentences += [_first_and_last(metric, lines_with(block, metric.read)[0]) for metric in metrics]
    return sentences if metrics else [*sentences, NO_TEST]


def _first_and_last(metric: Metric, line: Line) -> str:
    """The first and the last round that have the figure."""
    known = [(Entry(f"round {r}", line, r), point) for r, point in enumerate(line.points(metric.read)) if point]
    better, worse = known[0], known[-1]
    if len(known) == 1:
        only = f"{_figure(better[1])} in {better[0].name}"
        return f"{metric.name}: {only}; no other round has one, so there is nothing to compare it with."
    if (worse[1].value > better[1].value) == metric.higher_is_better:
        better, worse = worse, better
    return _of_two(metric, better, worse)


def _compared(block: Block) -> list[str]:
    names = _names(block.lines)
    entries = _at_common_size(names, block.lines)
    if not entries:
        return ["The runs have no pool of the same size, so their figures are not compared."]
    size = entries[0].line.sizes[entries[0].r]
    which = ", ".join(_full_name(line) if name == _short_name(line) else name for name, line, _ in entries)
    last = ", the last round of each" if all(r == line.rounds - 1 for _, line, r in entries) else ""
    compared = f"Compared at {size:,} rows in the pool{last}: {which}."
    sentences = [compared, *_radius(entries), *_families(entries)]
    metrics = metrics_of(block)
    sentences += [_by_metric(metric, block, names) for metric in metrics]
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
    entries = _at_common_size(*zip(*with_it, strict=True), read=metric.read)
    if not entries:
        return f"{metric.name}: not compared, the runs have it at no pool of the same size."
    known = [(entry, point) for entry in entries if (point := entry.line.points(metric.read)[entry.r])]
    best, *others = sorted(known, key=lambda one: one[1].value, reverse=metric.higher_is_better)
    if len(others) == 1:
        return _of_two(metric, best, others[0])
    apart = [_apart(best[0], other, metric.read) for other, _ in others]
    highest = "highest" if metric.higher_is_better else "lowest"
    sentence = f"{metric.name}: the {highest} is that of {best[0].name}, {_figure(best[1])}."
    for outcome, words in ((True, "Told apart from it"), (False, "Not told apart from it"), (None, "No intervals")):
        names_and_figures = [
            f"{other.name} {_figure(point)}"
            for (other, point), this in zip(others, apart, strict=True)
            if this is outcome
        ]
        sentence += f" {words}: {', '.join(names_and_figures)}." if names_and_figures else ""
    return sentence


def _of_two(metric: Metric, better: tuple[Entry, Point], worse: tuple[Entry, Point]) -> str:
    (one, other), value, other_value = (better[0], worse[0]), _figure(better[1]), _figure(worse[1])
    apart = _apart(one, other, metric.read)
    if apart:
        way = "higher" if metric.higher_is_better else "lower"
        return f"{metric.name}: {way} with {one.name}, {value} against {other_value} with {other.name}."
    both = f"{one.name} {value}, {other.name} {other_value}"
    if apart is None:
        return f"{metric.name}: {both}; without intervals nothing says whether the difference is more than chance."
    return f"{metric.name}: not told apart, {both}."


def _apart(one: Entry, other: Entry, read: Read) -> bool | None:
    """Of lines with the same seeds, by the differences seed by seed; otherwise by the two intervals."""
    others = {record.run.config.seed: read(record, other.r) for record in other.line.records}
    pairs = [(read(record, one.r), others.get(record.run.config.seed)) for record in one.line.records]
    differences = [mine.value - theirs.value for mine, theirs in pairs if mine and theirs]
    if len(pairs) > 1 and len(pairs) == len(others) == len(differences):
        _, low, high = t_interval(differences)
        return low > 0 or high < 0
    point, other_point = one.line.points(read)[one.r], other.line.points(read)[other.r]
    return told_apart(point, other_point) if point and other_point else None


def _radius(entries: Sequence[Entry]) -> list[str]:
    """The covering radius, which K-Center minimizes, beside that of random subsets."""
    parts = []
    for name, line, r in entries:
        point, random = line.points(measure(RADIUS))[r], spread(line, r, RADIUS)
        if point:
            beside = f", {_beside(line, r)}, {between(random)[1:-1]}" if random else ""
            parts.append(f"{name} {_figure(point)}{beside}")
    return [f"Covering radius, the largest distance of a candidate to the pool: {'; '.join(parts)}."] if parts else []


def _beside(line: Line, r: int) -> str:
    """Whether the radii of a line's pools are less than, more than or among those of random subsets."""
    sides = {side(record, r, RADIUS) for record in line.records}
    random = f"{line.records[0].diversity['random']} random subsets of that size"
    if len(sides) > 1:
        return f"which beside {random} differs from seed to seed"
    seeds = f"for each of {len(line.records)} seeds " if len(line.records) > 1 else ""
    return seeds + {1: "less than each of ", -1: "more than each of ", 0: "among "}[sides.pop()] + random


def _families(entries: Sequence[Entry]) -> list[str]:
    """How many kinds of rows the pools have, where all runs have the kinds under one key."""
    key, *other_keys = {record.picked.kind_key for _, line, _ in entries for record in line.records}
    if key is None or other_keys:
        return []
    (first, first_reached), *others = [
        (name, _range({record.picked.kinds[r] for record in line.records})) for name, line, r in entries
    ]
    all_kinds = _range({record.picked.all_kinds for _, line, _ in entries for record in line.records})
    parts = [f"{first} reached {first_reached} of {all_kinds} {KINDS.get(key, f'values of “{key}”')}"]
    sentence = ", ".join([*parts, *(f"{name} {reached}" for name, reached in others)]) + "."
    by_strategy = first == _short_name(entries[0].line)  # a run's name is left as it is
    return [sentence[0].upper() + sentence[1:] if by_strategy else sentence]


def _range(numbers: set[int]) -> str:
    return " to ".join(str(one) for one in dict.fromkeys((min(numbers), max(numbers))))


def _at_common_size(names: Sequence[str], lines: Sequence[Line], read: Read | None = None) -> list[Entry]:
    """The lines at the largest pool that all have, and of which all have the figure; empty where there is none."""
    rounds = [{size: r for r, size in enumerate(line.sizes) if read is None or line.points(read)[r]} for line in lines]
    common = set.intersection(*map(set, rounds))
    if not common:
        return []
    size = max(common)
    return [Entry(name, line, by_size[size]) for name, line, by_size in zip(names, lines, rounds, strict=True)]


def _names(lines: Sequence[Line]) -> list[str]:
    """The strategies' names, where no two lines have the same."""
    names = [_short_name(line) for line in lines]
    return names if len(set(names)) == len(names) else [line.name for line in lines]


def _short_name(line: Line) -> str:
    name, *more = strategy(line.records[0].run).split(", ")
    title = STRATEGIES[name].title if name in STRATEGIES else name  # a run may be of another version
    return " ".join([title, *more])


def _full_name(line: Line) -> str:
    several = len(line.records)
    return f"{_short_name(line)} ({f'{several} seeds' if several > 1 else line.name})"


def _figure(point: Point) -> str:
    return f"{number(point.value)} {between(point)}".strip()
