"""The sections of a report as HTML: what the runs are, how good, how diverse, at what cost, and how to read it."""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from markupsafe import Markup
from matplotlib.figure import Figure

from .charts import Limits, Numbers, Series, limits, number, stacked_bars
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
from .page import NOTHING, Draw, Table, render
from .seeds import Line, Point, Record, line_of, strategy

POOL = "rows in the pool"
STAGES = {  # what a round's time goes into
    "training": stage_metric("train", "seconds"),
    "validation loss": stage_metric("train", "validation_seconds"),
    "held-out groups loss": stage_metric("train", "held_out_groups_seconds"),
    "embedding": stage_metric("embed", "seconds"),
    "selection": stage_metric("select", "seconds"),
}
CHARTED = {"covering_radius": "distance", "vendi": "effective number of rows"}  # and units; all are in the tables
BEST_AND_LAST = (
    "Best and last round. The best is chosen on the test, that is, by the very figures shown, so on new rows or "
    "questions it would look worse than here. The last round is not chosen."
)
BEST_AND_LAST_HEAD = ["figure", "runs", "best round", "its figure", "last round", "its figure"]
LONGEST_SLUG = 80  # characters; with what is put before and after it a file's name has at most 255 bytes


def runs_section(blocks: Sequence[Block]) -> Markup:
    """What the runs are."""
    runs = [(block, record) for block in blocks for line in block.lines for record in line.records]
    return render("runs", names=[record.name for _, record in runs], facts=[_facts(*run) for run in runs])


def quality_section(block: Block, draw: Draw) -> Markup:
    """How good the models are."""
    shown = [(metric, lines_with(block, metric.read)) for metric in metrics_of(block)]
    xlim, ylims = _sizes(block), _limits_by_unit(shown)
    charts = [
        draw(
            _slug(metric.name),
            *_lines(lines, metric.read, metric.label, metric.unit, xlim=xlim, ylim=ylims[metric.unit]),
            _bands(metric, lines) if metric.label == metric.name else f"{metric.name}. {_bands(metric, lines)}",
        )
        for metric, lines in shown
    ]
    rows = [_best_and_last(metric, line) for metric, lines in shown for line in lines]
    left_out = [note for metric, lines in shown for note in _left_out(metric.name, metric.read, lines)]
    return render(
        "quality",
        charts=charts,
        best_and_last=Table(BEST_AND_LAST, BEST_AND_LAST_HEAD, rows),
        side_by_side=[_side_by_side(metric, lines) for metric, lines in shown],
        notes=left_out + _unfinished(block) + caveats(block, [metric.name for metric, _ in shown]),
    )


def diversity_section(block: Block, draw: Draw) -> Markup:
    """How diverse the pools are."""
    first = block.lines[0].records[0].diversity
    bands = " The grey band: from the lowest to the highest of the random subsets."
    if any(len(line.records) > 1 for line in block.lines):
        bands += " The others: of several seeds, the 95% t interval of their mean."
    charts = []
    for name, unit in CHARTED.items():
        entry = first["measures"][name]
        shown = _lines(block.lines, measure(name), entry["title"], unit, _yardstick(block, name), xlim=_sizes(block))
        charts.append(draw(_slug(entry["title"]), *shown, meaning(entry) + bands))
    radius = stage_metric("select", "radius")
    alone = [line_of(record) for line in block.lines for record in line.records]
    return render(
        "diversity",
        model=first["model"],
        random=first["random"],
        charts=charts,
        radii=_radii_table([line for line in alone if any(line.points(radius))], radius),
        measures=[(line.name, _measures_table(line)) for line in block.lines],
    )


def cost_section(block: Block, draw: Draw) -> Markup:
    """Where the time went."""
    lines = lines_with(block, total_seconds)
    stages = {name: read for name, read in STAGES.items() if any(any(line.points(read)) for line in lines)}
    seconds = [{name: values(line, read) for name, read in stages.items()} for line in lines]
    totals = [values(line, total_seconds) for line in lines]
    top = max((value for total in totals for value in total if value is not None), default=None)
    width = max((line.rounds for line in lines), default=0)
    charts, tables = [], []
    for nth, (line, parts, total) in enumerate(zip(lines, seconds, totals, strict=True), 1):
        title = "Seconds per round" if len(lines) == 1 else f"Seconds per round: {line.label}"
        rounds = [str(r) for r in range(line.rounds)]
        chart = stacked_bars(rounds, parts, "round", "seconds", title, top=top, width=width)
        words = "; ".join(f"round {r}: {number(value)} s" for r, value in enumerate(total) if value is not None)
        mean = f" Mean of {len(line.records)} runs." if len(line.records) > 1 else ""
        caption = f"By stage, one above the other.{mean}"
        charts.append(draw(f"seconds-{nth}", chart, f"{title}. {words}.", caption))
        tables.append(_costs_table(f"{line.name}.{mean}", line, parts, total))
    figures = {"all stages": total_seconds} | stages
    notes = [note for name, read in figures.items() for note in _left_out(f"Seconds, {name}", read, lines)]
    return render("cost", charts=charts, tables=tables, notes=notes)


def reading_section(blocks: Sequence[Block]) -> Markup:
    """What the figures mean, and what they do not say."""
    measures = blocks[0].lines[0].records[0].diversity["measures"]
    return render("reading", measures=[(entry["title"], meaning(entry)) for entry in measures.values()])


def total_seconds(record: Record, r: int) -> Point | None:
    """All of a round's stages; None where none is known."""
    seconds = [point.value for read in STAGES.values() if (point := read(record, r))]
    return Point(sum(seconds)) if seconds else None


def meaning(entry: dict) -> str:
    """What a measure says, as measure_run describes it."""
    better = "Higher" if entry["higher_is_more_diverse"] else "Lower"
    return f"{entry['what'][0].upper()}{entry['what'][1:]}. {better} is more diverse."


def _lines(
    lines: Sequence[Line], read: Read, title: str, unit: str, yardstick: tuple[str, Series] | None = None, **limits
) -> tuple[Figure, str]:
    """A chart with every one of the lines that has the figure, and the same in words. limits: xlim, ylim."""
    all_series = {line.label: series(line.sizes, line.points(read)) for line in lines}
    shown = {label: one for label, one in all_series.items() if one[0]}
    words = [
        f"{label}: " + ", ".join(f"{number(y)} at {x:,}" for x, y in zip(*one[:2], strict=True) if y is not None)
        for label, one in [*shown.items(), *([yardstick] if yardstick else [])]
    ]
    chart = line_chart(shown, POOL, unit, title, yardstick=yardstick, **limits)
    return chart, f"{title} by {POOL}. {'; '.join(words)}."


def _sizes(block: Block) -> Limits | None:
    """Where the axes of the pools' sizes end."""
    sizes = {size for line in block.lines for size in line.sizes}
    return limits(sizes) if len(sizes) > 1 else (min(sizes) * 0.5, max(sizes) * 1.5)


def _limits_by_unit(shown: Sequence[tuple[Metric, Sequence[Line]]]) -> dict[str, Limits | None]:
    """By unit, where the axis of figures ends, that charts in one unit are to one scale."""
    extents: dict[str, list[float | None]] = {}  # figures and the ends of their intervals
    for metric, lines in shown:
        points = [point for line in lines for point in line.points(metric.read) if point]
        extents.setdefault(metric.unit, []).extend(value for point in points for value in point)
    return {unit: limits(extent) for unit, extent in extents.items()}


def _yardstick(block: Block, name: str) -> tuple[str, Series] | None:
    """The random subsets of the line that goes farthest."""
    line = max(block.lines, key=lambda line: line.sizes[-1])
    shown = series(line.sizes, [spread(line, r, name) for r in range(line.rounds)])
    return ("random subsets, mean and range", shown) if shown[0] else None


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


def _best_and_last(metric: Metric, line: Line) -> list[object]:
    known = [(r, point) for r, point in enumerate(line.points(metric.read)) if point]
    sign = -1 if metric.higher_is_better else 1
    best, best_point = min(known, key=lambda one: sign * one[1].value)
    last, last_point = known[-1]
    return [metric.name, line.name, best, _cell(best_point), last, _cell(last_point)]


def _radii_table(lines: Sequence[Line], radius: Read) -> Table:
    """By round, each run's radius. The runs' models have their own scales, so no chart joins them."""
    columns = zip_longest(*(line.points(radius) for line in lines))
    rows = [[r, *map(_cell, column)] for r, column in enumerate(columns) if any(column)]
    return Table("Radius by the runs' own models.", ["round", *(line.name for line in lines)], rows)


def _side_by_side(metric: Metric, lines: Sequence[Line]) -> Table:
    """By round, the figure of each line."""
    rows = []
    for r, column in enumerate(zip_longest(*(line.points(metric.read) for line in lines))):
        sizes = sorted({line.sizes[r] for line in lines if r < line.rounds})
        rows.append([r, " / ".join(f"{size:,}" for size in sizes), *map(_cell, column)])
    names = [_with_label(line.name, line.label) for line in lines]
    caption = f"{_with_label(metric.name, metric.label)}, round by round."
    return Table(caption, ["round", POOL, *names], rows)


def _costs_table(caption: str, line: Line, seconds: Mapping[str, Numbers], total: Numbers) -> Table:
    columns = {  # with the format of their numbers
        "train loss": (values(line, stage_metric("train", "train_loss")), "#.4g"),
        **{f"{name}, s": (stage, ",.2f") for name, stage in seconds.items()},
        "all, s": (total, ",.2f"),
        "tokens/s": (values(line, stage_metric("embed", "tokens_per_second")), ",.0f"),
    }
    rows = []
    for r, size in enumerate(line.sizes):
        figures = [(column[r], form) for column, form in columns.values()]
        rows.append([r, f"{size:,}", *(NOTHING if value is None else format(value, form) for value, form in figures)])
    return Table(caption, ["round", POOL, *columns], rows)


def _with_label(name: str, label: str) -> str:
    return name if label == name else f"{name} (in charts: {label})"


def _left_out(name: str, read: Read, lines: Sequence[Line]) -> list[str]:
    """Rounds of which some seeds have the figure and others do not."""
    return [
        f"{name}, {line.name}: round {r} is left out, {known} of {len(line.records)} runs have it."
        for line in lines
        for r in range(line.rounds)
        if 0 < (known := sum(read(record, r) is not None for record in line.records)) < len(line.records)
    ]


def _unfinished(block: Block) -> list[str]:
    return [
        f"{record.name}: {record.run.rounds} of {record.run.config.n_round + 1} rounds are finished."
        for line in block.lines
        for record in line.records
        if record.run.rounds <= record.run.config.n_round
    ]


def _measures_table(line: Line) -> Table:
    """Every measure, by round."""
    measures, rows = line.records[0].diversity["measures"], []
    for name in sorted(measures, key=lambda name: name != "covering_radius"):
        cells = [
            _measured(point, spread(line, r, name), _mark([side(record, r, name) for record in line.records]))
            for r, point in enumerate(line.points(measure(name)))
        ]
        rows.append([measures[name]["title"], *cells])
    pools, marks = "each pool", "▲ more diverse than all of them, ▼ less."
    if len(line.records) > 1:
        pools = f"the mean of {len(line.records)} pools"
        marks = "▲ every pool is more diverse than all random subsets of its own run, ▼ every pool is less."
    caption = f"{line.name}: {pools}, and below it random subsets of that size, mean (lowest to highest). {marks}"
    return Table(caption, ["", *(f"round {r}: {size:,} rows" for r, size in enumerate(line.sizes))], rows)


def _mark(sides: Sequence[int]) -> str:
    """Of a line's pools: a mean over seeds says nothing beside the extremes of single draws, so all have to agree."""
    return {1: " ▲", -1: " ▼", 0: ""}[sides[0]] if len(set(sides)) == 1 else ""


def _measured(point: Point | None, random: Point | None, mark: str) -> str:
    if not point or not random or not random.interval:
        return number(point.value) if point else NOTHING
    mean, low, high, own = _apart(random.value, *random.interval, point.value)
    return Markup("{}{}<small>{} ({} to {})</small>").format(own, mark, mean, low, high)


def _apart(*numbers: float) -> list[str]:
    """The numbers with four digits, or with as many, up to six, as make different numbers look different."""
    for digits in range(4, 7):
        shown = [f"{value:#,.{digits}g}" for value in numbers]
        if len(set(shown)) == len(set(numbers)):
            break
    return shown


def _cell(point: Point | None) -> str:
    if not point or not point.interval:
        return number(point.value) if point else NOTHING
    return Markup("{}<small>{}</small>").format(number(point.value), between(point))


def _slug(name: str) -> str:
    return "-".join(re.findall("[a-z0-9]+", name.lower()))[:LONGEST_SLUG]


def _facts(block: Block, record: Record) -> dict[str, object]:
    """What a run is, by the headings of a table's rows."""
    run, config = record.run, record.run.config
    candidates, validation = len(record.picked.points), config.val_set_size
    versions = run.state.manifest(run.rounds - 1)["versions"]
    return {
        "strategy": strategy(run),
        "data set": block.title,
        "rows": f"{len(run.data.rows):,}; {candidates:,} candidates, {validation:,} held out",
        "base model": config.model_name_or_path,
        "pool": f"{config.init_label_num:,} + {config.n_round} rounds x {config.n_query:,}",
        "finished": f"{run.rounds} of {config.n_round + 1} rounds, counted from 0",
        "seed": config.seed,
        "fixed model of the measures": record.diversity["model"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
