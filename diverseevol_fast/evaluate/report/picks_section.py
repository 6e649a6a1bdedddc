"""The picks of a report as HTML: the plane of all embeddings, and some rows of each round beside their nearest."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from .charts import colours_of, limits, projection_by_kind, projection_by_round
from .examples import Example, Picked, Text
from .metrics import Block
from .page import Html, cut, details, element, join, number_or_nothing, table
from .sections import Draw
from .seeds import Line

ROW_TEXT = 150  # characters of a row's question, and of its answer


def picks_section(block: Block, draw: Draw) -> Html:
    """Which rows were chosen. Of runs that differ in their seed alone, by the first."""
    records = [line.records[0] for line in block.lines]
    xlim, ylim = (limits(value for one in records for value in one.picked.points[:, axis]) for axis in (0, 1))
    names = colours_of([kind for one in records for kind in one.picked.kind_of])
    charts, parts = [], []
    for place, (line, record) in enumerate(zip(block.lines, records, strict=True)):
        about = {"title": line.label, "xlim": xlim, "ylim": ylim}
        charts.append(draw(f"projection-{place + 1}", *_projection(line, record.picked, names, about)))
        if record.picked.kind_key:
            found = ", ".join(f"{count} in round {r}" for r, count in enumerate(record.picked.kinds))
            kinds = f"{record.name}: values of “{record.picked.kind_key}” in the pool: {found}; "
            parts.append(element("p", kinds, f"{record.picked.all_kinds} among the candidates."))
        tables = [_examples_table(r, examples) for r, examples in enumerate(record.picked.examples)]
        heading = f"The first rows that joined in each round: {record.name}"
        parts.append(details(heading, *tables, shown=place == 0))
    return join([element("div", *charts, class_="charts"), *parts])


def _projection(line: Line, picked: Picked, names: Sequence[str], about: dict) -> tuple[Figure, str, str]:
    """A chart, the same in words, and its caption. names: the kinds that have a colour, of all lines."""
    plane, n = picked.plane, f"{len(picked.points):,}"
    first = 1 if plane.left_out is None else 2
    axes = [f"direction {axis} ({share:.0%} of the variance)" for axis, share in enumerate(plane.shares, first)]
    about = {"xlabel": axes[0], "ylabel": axes[1]} | about
    alt = f"Scatter plot of all {n} candidates and of the rows that joined the pool."
    if picked.kind_key:
        chart = projection_by_kind(picked.points, picked.joined, picked.kind_of, names, **about)
        caption = f"All {n} candidates, pale, and the rows of the pool, edged, in the colours of “{picked.kind_key}”"
    else:
        chart = projection_by_round(picked.points, picked.joined, **about)
        caption = f"All {n} candidates in grey, the pool by round"
    caption += ", in the plane of most variance of the fixed model's embeddings (principal components)."
    if plane.left_out is not None:
        caption += (
            f" The first direction, which alone holds {plane.left_out:.0%} of the variance, is left out: it would show "
            "two stripes."
        )
    if len(line.records) > 1:
        caption += f" This is {line.records[0].name}, the first of {len(line.records)} runs."
    return chart, alt, caption


def _examples_table(r: int, examples: Sequence[Example]) -> Html:
    if r == 0:
        rows = [[example.text.row, _text_cell(example.text)] for example in examples]
        return table("Round 0: drawn at random.", ["row", "joined the pool"], rows, "texts")
    rows = [
        [
            example.text.row, _text_cell(example.text), number_or_nothing(example.own_distance, "#.4g"),
            _text_cell(example.nearest), number_or_nothing(example.distance, "#.4g"),
        ]
        for example in examples
    ]  # fmt: skip
    head = ["row", "joined the pool", "distance by the run", "nearest row of the pool", "distance by the fixed model"]
    return table(f"Round {r}.", head, rows, "texts")


def _text_cell(text: Text) -> Html:
    kind = [element("span", cut(text.kind, 40), class_="kind"), " "] if text.kind else []
    answer = element("small", cut(text.answered, ROW_TEXT), dir="auto")
    return element("td", *kind, cut(text.asked, ROW_TEXT), answer, class_="text", dir="auto")
