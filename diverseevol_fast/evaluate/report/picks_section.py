"""The picks of a report: the plane of all embeddings, and some rows of each round beside their nearest."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from .charts import colors_of, limits, projection_by_kind, projection_by_round
from .examples import Picked
from .metrics import Block
from .page import Draw, render
from .seeds import Line


def picks_section(block: Block, draw: Draw) -> Markup:
    """Which rows were chosen. Of runs that differ in their seed alone, by the first."""
    records = [line.records[0] for line in block.lines]
    xlim, ylim = (limits(value for one in records for value in one.picked.points[:, axis]) for axis in (0, 1))
    kinds = colors_of([kind for one in records for kind in one.picked.kind_of])
    charts = []
    for number, line in enumerate(block.lines, 1):
        texts = {"title": line.label, "xlim": xlim, "ylim": ylim}
        charts.append(draw(f"projection-{number}", *_projection(line, line.records[0].picked, kinds, texts)))
    return render("picks", charts=charts, runs=[(record.name, record.picked) for record in records])


def _projection(line: Line, picked: Picked, kinds: Sequence[str], texts: dict[str, Any]) -> tuple[Figure, str, str]:
    """A chart, the same in words, and its caption. kinds: those that have a color, of all lines."""
    plane, n = picked.plane, f"{len(picked.points):,}"
    first = 1 if plane.left_out is None else 2
    axes = [f"direction {axis} ({share:.0%} of the variance)" for axis, share in enumerate(plane.shares, first)]
    texts = {"xlabel": axes[0], "ylabel": axes[1]} | texts
    alt = f"Scatter plot of all {n} candidates and of the rows that joined the pool."
    if picked.kind_key:
        chart = projection_by_kind(picked.points, picked.joined, picked.kind_of, kinds, **texts)
        caption = f"All {n} candidates, pale, and the rows of the pool, edged, in the colors of “{picked.kind_key}”"
    else:
        chart = projection_by_round(picked.points, picked.joined, **texts)
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
