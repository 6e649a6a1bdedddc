"""The table of a run's rounds."""

from collections.abc import Callable
from typing import Any

from .state import RunState

COLUMNS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("pool", lambda m: m["pool"], "d"),
    ("validation loss", lambda m: m["train"]["validation_loss"], ".4f"),
    ("held-out groups loss", lambda m: m["train"]["held_out_groups_loss"], ".4f"),
    ("train loss", lambda m: m["train"]["train_loss"], ".4f"),
    ("radius", lambda m: m["select"]["radius"], ".4g"),
    ("train s", lambda m: m["train"]["seconds"], ".1f"),
    ("embedded", lambda m: m["select"]["share_embedded"], ".1%"),
    ("embed s", lambda m: m["embed"]["seconds"], ".1f"),
    ("tokens/s", lambda m: m["embed"]["tokens_per_second"], ",.0f"),
    ("select s", lambda m: m["select"]["seconds"], ".2f"),
]


def rounds_table(state: RunState, n_round: int) -> str:
    """A line per round; "-" where a round lacks the metric, no column where all rounds do.

    The radius is a distance, not squared.
    """
    lines = [["round", *(name for name, _, _ in COLUMNS)]]
    for r in range(n_round + 1):
        metrics = state.metrics(r)
        lines.append([str(r), *(_cell(metrics, read, form) for _, read, form in COLUMNS)])
    columns = [column for column in zip(*lines, strict=True) if set(column[1:]) != {"-"}]
    lines = list(zip(*columns, strict=True))
    widths = [max(map(len, column)) for column in columns]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cell(metrics: dict[str, Any], read: Callable[[dict[str, Any]], Any], form: str) -> str:
    try:
        return format(read(metrics), form)
    except KeyError:
        return "-"
