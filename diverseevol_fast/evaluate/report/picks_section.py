"""The picks of a report as HTML: the plane of all embeddings, and some rows of each round beside their nearest."""

from collections.abc import Sequence

from .charts import projection
from .page import Html, cut, details, element, join, number_or_nothing, table
from .picked import Example, Text
from .readings import Block
from .sections import Draw

ROW_TEXT = 150  # characters of a row's question, and of its answer


def picks_section(block: Block, draw: Draw) -> Html:
    """Which rows were chosen. Of runs that differ in their seed alone, by the first."""
    parts = []
    for place, line in enumerate(block.lines):
        record, picked = line.records[0], line.records[0].picked
        directions = [f"direction {axis} ({share:.0%} of the variance)" for axis, share in enumerate(picked.shares, 1)]
        chart = projection(picked.plane, picked.pools, *directions, line.label)
        alt = f"Scatter plot of all {len(picked.plane):,} candidates and of the rows that joined in each round."
        caption = (
            f"All {len(picked.plane):,} candidates in grey, the pool by round, in the plane of most variance of the "
            "fixed model's embeddings (principal components)."
        )
        if len(line.records) > 1:
            caption += f" This is {record.name}, the first of {len(line.records)} runs."
        if len(block.lines) > 1:
            parts.append(element("h4", line.name))
        parts.append(element("div", draw(f"projection-{place + 1}", chart, alt, caption), class_="charts"))
        if picked.kind_key:
            found = ", ".join(f"{count} in round {r}" for r, count in enumerate(picked.kinds))
            kinds = f"Values of “{picked.kind_key}” in the pool: {found}; {picked.all_kinds} among the candidates."
            parts.append(element("p", kinds))
        tables = [_examples_table(r, examples) for r, examples in enumerate(picked.examples)]
        heading = f"The first rows that joined in each round: {record.name}"
        parts.append(details(heading, *tables, shown=place == 0))
    return join(parts)


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
