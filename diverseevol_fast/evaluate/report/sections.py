"""The figures of a report as HTML: how good, how diverse, and at what cost, for the runs on one data set."""

import re
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from .charts import Limits, Series, limits, number, stacked_bars
from .charts import lines as line_chart
from .metrics import (
    Block,
    Metric,
    Read,
    between,
    caveats,
    lines_with,
    measure,
    metrics_of,
    series,
    side,
    spread,
    stage_metric,
    values,
)
from .page import NOTHING, Html, details, element, join, number_or_nothing, table
from .seeds import Line, Point, Record, line_of

Draw = Callable[[str, Figure, str, object], Html]  # name of the chart, the chart, the same in words, caption

POOL = "rows in the pool"
STAGES = {  # what a round's time goes into
    "training": stage_metric("train", "seconds"),
    "validation loss": stage_metric("train", "validation_seconds"),
    "held-out groups loss": stage_metric("train", "held_out_groups_seconds"),
    "embedding": stage_metric("embed", "seconds"),
    "selection": stage_metric("select", "seconds"),
}
CHARTED = {"covering_radius": "distance", "vendi": "effective number of rows"}  # and units; all are in the tables
LONGEST_SLUG = 80  # characters; with what is put before and after it a file's name has at most 255 bytes


def quality_section(block: Block, draw: Draw) -> Html:
    """How good the models are."""
    shown = [(metric, lines_with(block, metric.read)) for metric in metrics_of(block)]
    if not shown:
        return element(
            "p", "Nothing says how good the models are: no rows were held out (val_set_size), and no judgements were "
            "given (--judgements).",
        )  # fmt: skip
    xlim = _sizes(block)
    ylims = {  # charts in one unit are to one scale
        unit: limits(
            value
            for metric, lines in shown
            if metric.unit == unit
            for line in lines
            for value in _extent(line, metric.read)
        )
        for unit in {metric.unit for metric, _ in shown}
    }
    charts = [
        draw(
            _slug(metric.name),
            *_lines(lines, metric.read, metric.label, metric.unit, xlim=xlim, ylim=ylims[metric.unit]),
            _about(metric, lines),
        )
        for metric, lines in shown
    ]
    best_and_last = table(
        "Best and last round. The best is chosen on the test, that is, by the very figures shown, so on new rows or "
        "questions it would look worse than here. The last round is not chosen.",
        ["figure", "runs", "best round", "its figure", "last round", "its figure"],
        [_best_and_last(metric, line) for metric, lines in shown for line in lines],
    )
    left_out = [note for metric, lines in shown for note in _left_out(metric.name, metric.read, lines)]
    against = caveats(block, [metric.name for metric, _ in shown])
    notes = [element("p", note, class_="note") for note in (*left_out, *_unfinished(block), *against)]
    tables = [_side_by_side(metric, lines) for metric, lines in shown]
    return join([
        element("div", *charts, class_="charts"), element("div", best_and_last, *tables, class_="tables"), *notes,
    ])  # fmt: skip


def diversity_section(block: Block, draw: Draw) -> Html:
    """How diverse the pools are."""
    found = block.lines[0].records[0].diversity
    intro = element(
        "p", "All measures are taken in one space, whatever model chose the rows: embeddings of the rows' own words by "
        f"one fixed model ({found['model']}, the base model of the first run), less their mean. The yardstick is "
        f"{found['random']} random subsets of a run's candidates, of the pool's size.",
    )  # fmt: skip
    charts = []
    for name, unit in CHARTED.items():
        entry = found["measures"][name]
        yardstick = _yardstick(block, name)
        shown = _lines(block.lines, measure(name), entry["title"], unit, yardstick, xlim=_sizes(block))
        charts.append(draw(_slug(entry["title"]), *shown, f"{meaning(entry)}{_bands_of_measures(block)}"))
    own = stage_metric("select", "radius")
    alone = [line_of(record) for line in block.lines for record in line.records]
    measured = [line for line in alone if any(line.points(own))]
    radii = [_own_radii(measured, own)] if measured else []
    tables = [
        details(f"All measures: {line.name}", _measures_table(line), shown=place == 0)
        for place, line in enumerate(block.lines)
    ]
    return join([intro, element("div", *charts, class_="charts"), *radii, *tables])


def cost_section(block: Block, draw: Draw) -> Html:
    """Where the time went."""
    lines = lines_with(block, total_seconds)
    if not lines:
        return element("p", "The runs have no records of their time (state/rd_<r>/metrics.json).")
    stages = {name: read for name, read in STAGES.items() if any(any(line.points(read)) for line in lines)}
    seconds = [{name: values(line, read) for name, read in stages.items()} for line in lines]
    totals = [values(line, total_seconds) for line in lines]
    top = max(value for total in totals for value in total if value is not None)
    width = max(line.rounds for line in lines)
    charts, tables = [], []
    for place, (line, parts, total) in enumerate(zip(lines, seconds, totals, strict=True)):
        title = "Seconds per round" if len(lines) == 1 else f"Seconds per round: {line.label}"
        chart = stacked_bars(
            [str(r) for r in range(line.rounds)], parts, "round", "seconds", title, top=top, width=width
        )
        words = "; ".join(f"round {r}: {number(value)} s" for r, value in enumerate(total) if value is not None)
        mean = f" Mean of {len(line.records)} runs." if len(line.records) > 1 else ""
        charts.append(
            draw(f"seconds-{place + 1}", chart, f"{title}. {words}.", f"By stage, one above the other.{mean}")
        )
        columns = {  # and how their numbers are written
            "train loss": (values(line, stage_metric("train", "train_loss")), "#.4g"),
            **{f"{name}, s": (stage, ",.2f") for name, stage in parts.items()},
            "all, s": (total, ",.2f"),
            "tokens/s": (values(line, stage_metric("embed", "tokens_per_second")), ",.0f"),
        }
        rows = [
            [r, f"{size:,}", *(number_or_nothing(column[r], form) for column, form in columns.values())]
            for r, size in enumerate(line.sizes)
        ]
        tables.append(table(f"{line.name}.{mean}", ["round", POOL, *columns], rows))
    note = (
        "tokens/s: while candidates were embedded. A stage that was interrupted and continued shows its last part. "
        f"“{NOTHING}”: the round had no such stage, or one of several runs has no record of it; “all” is the mean of "
        "the runs' own sums."
    )
    figures = {"all stages": total_seconds} | stages
    left_out = [one for name, read in figures.items() for one in _left_out(f"Seconds, {name}", read, lines)]
    notes = [element("p", one, class_="note") for one in (note, *left_out)]
    return join([element("div", *charts, class_="charts"), element("div", *tables, class_="tables"), *notes])


def total_seconds(record: Record, r: int) -> Point | None:
    """All of a round's stages; None where none is known."""
    found = [point.value for read in STAGES.values() if (point := read(record, r))]
    return Point(sum(found)) if found else None


def meaning(entry: dict) -> str:
    """What a measure says, as measure_run describes it."""
    better = "Higher" if entry["higher_is_more_diverse"] else "Lower"
    return f"{entry['what'][0].upper()}{entry['what'][1:]}. {better} is more diverse."


def _lines(
    lines: Sequence[Line], read: Read, title: str, unit: str, yardstick: tuple[str, Series] | None = None,
    *, xlim: Limits | None = None, ylim: Limits | None = None,
) -> tuple[Figure, str]:  # fmt: skip
    """A chart with every one of the lines that has the figure, and the same in words."""
    all_series = {line.label: series(line.sizes, line.points(read)) for line in lines}
    shown = {label: one for label, one in all_series.items() if one[0]}
    words = [
        f"{label}: " + ", ".join(f"{number(y)} at {x:,}" for x, y in zip(*one[:2], strict=True) if y is not None)
        for label, one in [*shown.items(), *([yardstick] if yardstick else [])]
    ]
    chart = line_chart(shown, POOL, unit, title, yardstick=yardstick, xlim=xlim, ylim=ylim)
    return chart, f"{title} by {POOL}. {'; '.join(words)}."


def _sizes(block: Block) -> Limits:
    """Where the axes of the pools' sizes end."""
    sizes = {size for line in block.lines for size in line.sizes}
    return limits(sizes) if len(sizes) > 1 else (min(sizes) * 0.5, max(sizes) * 1.5)


def _extent(line: Line, read: Read) -> list[float | None]:
    """The figures of a line and its intervals' ends."""
    return [value for point in line.points(read) if point for value in point]


def _yardstick(block: Block, name: str) -> tuple[str, Series] | None:
    """The random subsets of the line that goes farthest."""
    line = max(block.lines, key=lambda line: line.sizes[-1])
    found = series(line.sizes, [spread(line, r, name) for r in range(line.rounds)])
    return ("random subsets, mean and range", found) if found[0] else None


def _about(metric: Metric, lines: Sequence[Line]) -> str:
    """What the chart shows, beyond its title."""
    return _bands(metric, lines) if metric.label == metric.name else f"{metric.name}. {_bands(metric, lines)}"


def _bands(metric: Metric, lines: Sequence[Line]) -> str:
    """What the chart's bands are."""
    points = [(line, point) for line in lines for point in line.points(metric.read) if point]
    kinds = []
    if any(len(line.records) > 1 for line, _ in points):
        kinds.append("of several seeds, the 95% t interval of their mean")
    if any(len(line.records) == 1 and point.low is not None for line, point in points):
        kinds.append(f"of one run, 95% by resampling its {'questions' if metric.higher_is_better else 'rows'}")
    better = "Higher is better." if metric.higher_is_better else "Lower is better."
    return f"{better} Bands: {'; '.join(kinds)}." if kinds else f"{better} No intervals."


def _bands_of_measures(block: Block) -> str:
    """What the bands of a chart of a measure are: a sentence for each kind."""
    of_random = " The grey band: from the lowest to the highest of the random subsets."
    of_seeds = " The others: of several seeds, the 95% t interval of their mean."
    return of_random + (of_seeds if any(len(line.records) > 1 for line in block.lines) else "")


def _best_and_last(metric: Metric, line: Line) -> list[object]:
    known = [(r, point) for r, point in enumerate(line.points(metric.read)) if point]
    sign = -1 if metric.higher_is_better else 1
    best, best_point = min(known, key=lambda one: sign * one[1].value)
    last, last_point = known[-1]
    return [metric.name, line.name, best, _cell(best_point), last, _cell(last_point)]


def _own_radii(lines: Sequence[Line], read: Read) -> Html:
    """By round, as numbers: each is in the space of the model that chose the round's rows, so no line joins them."""
    rounds = max(line.rounds for line in lines)
    points = [line.points(read) for line in lines]
    rows = [
        [r, *(_cell(own[r]) if r < len(own) else NOTHING for own in points)]
        for r in range(rounds)
        if any(r < len(own) and own[r] for own in points)
    ]
    shown = table("Radius by the runs' own models.", ["round", *(line.name for line in lines)], rows)
    about = (
        "That is the distance of a round's last pick to its nearest row of the pool, by the model that chose it. Where "
        "every round has its own model, it has its own scale: neither rounds nor runs compare."
    )
    return join([shown, element("p", about, class_="note")])


def _side_by_side(metric: Metric, lines: Sequence[Line]) -> Html:
    columns = [line.points(metric.read) for line in lines]
    rows = []
    for r in range(max(line.rounds for line in lines)):
        sizes = sorted({line.sizes[r] for line in lines if r < line.rounds})
        cells = [_cell(points[r]) if r < len(points) else NOTHING for points in columns]
        rows.append([r, " / ".join(f"{size:,}" for size in sizes), *cells])
    names = [_with_label(line.name, line.label) for line in lines]
    return table(f"{_with_label(metric.name, metric.label)}, round by round.", ["round", POOL, *names], rows)


def _with_label(name: str, label: str) -> str:
    return name if label == name else f"{name} (in charts: {label})"


def _left_out(name: str, read: Read, lines: Sequence[Line]) -> list[str]:
    """Rounds of which some seeds have the figure and others do not."""
    notes = []
    for line in lines:
        for r in range(line.rounds):
            known = sum(read(record, r) is not None for record in line.records)
            if 0 < known < len(line.records):
                notes.append(
                    f"{name}, {line.name}: round {r} is left out, {known} of {len(line.records)} runs have it."
                )
    return notes


def _unfinished(block: Block) -> list[str]:
    return [
        f"{record.name}: {record.run.rounds} of {record.run.config.n_round + 1} rounds are finished."
        for line in block.lines
        for record in line.records
        if record.run.rounds <= record.run.config.n_round
    ]


def _measures_table(line: Line) -> Html:
    found, several = line.records[0].diversity, len(line.records) > 1
    rows = []
    for name, entry in sorted(found["measures"].items(), key=lambda one: one[0] != "covering_radius"):
        cells = [
            _measured(point, spread(line, r, name), _mark([side(record, r, name) for record in line.records]))
            for r, point in enumerate(line.points(measure(name)))
        ]
        rows.append([entry["title"], *cells])
    pools = f"the mean of {len(line.records)} pools" if several else "each pool"
    marks = "▲ every pool is more diverse than all random subsets of its own run, ▼ every pool is less."
    caption = f"{line.name}: {pools}, and below it random subsets of that size, mean (lowest to highest). " + (
        marks if several else "▲ more diverse than all of them, ▼ less."
    )
    return table(caption, ["", *(f"round {r}: {size:,} rows" for r, size in enumerate(line.sizes))], rows)


def _mark(sides: Sequence[int]) -> str:
    """Of a line's pools: a mean over seeds says nothing beside the extremes of single draws, so all have to agree."""
    return {1: " ▲", -1: " ▼", 0: ""}[sides[0]] if len(set(sides)) == 1 else ""


def _measured(point: Point | None, random: Point | None, mark: str) -> object:
    if not point:
        return NOTHING
    if not random:
        return number(point.value)
    mean, low, high, own = _apart(random.value, random.low, random.high, point.value)
    return element("td", own, mark, element("small", f"{mean} ({low} to {high})"))


def _apart(*numbers: float) -> list[str]:
    """With four digits, or as many more as different numbers need to look different, up to six."""
    for digits in range(4, 7):
        shown = [f"{value:#,.{digits}g}" for value in numbers]
        if len(set(shown)) == len(set(numbers)):
            break
    return shown


def _cell(point: Point | None) -> object:
    if not point:
        return NOTHING
    return element("td", number(point.value), *([] if point.low is None else [element("small", between(point))]))


def _slug(name: str) -> str:
    return "-".join(re.findall("[a-z0-9]+", name.lower()))[:LONGEST_SLUG]
