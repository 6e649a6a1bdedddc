"""Charts of plain data, in one style: functions that return a matplotlib Figure; PNG files and SVG text of them."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..._common.files import atomic_path
from .page import html

Numbers = Sequence[float | None]
Limits = tuple[float, float]  # of an axis
Series = tuple[Sequence[float], Numbers, Numbers | None, Numbers | None]  # x, y, and the interval's low and high ends

INK, MUTED, GRID, PAPER = "#1f2329", "#5f6771", "#dfe2e6", "#fffffe"  # all differ: svg() puts variables for them
# Okabe and Ito's color-blind-safe palette without black and yellow; markers and dashes differ as the colors do.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS, DASHES = "os^Dvp", ("-", "--", ":", "-.")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper"} | {
    color: f"--series-{index}" for index, color in enumerate(PALETTE)
}
PLOT_AREA = "#f3f4f6"  # background of projections: light in a dark page too, as the dots are pixels
GREY = "#b4bbc4"  # points in the background
INCHES = (5.2, 3.5)  # readable when a phone shows it at 70%
PNG_DPI = 200  # twice a screen's pixels
LONGEST_NAME = 44  # characters of a name in a legend
NAMED_KINDS = 12  # kinds of rows that can have a color and a marker of their own
STYLE: dict[Any, Any] = {  # matplotlib's type for the keys is newer than the oldest version that works
    "text.usetex": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "figure.dpi": 72,
    "savefig.facecolor": "auto",
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
in_style = matplotlib.rc_context(STYLE)  # as a decorator


@in_style
def lines(
    series: dict[str, Series],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    yardstick: tuple[str, Series] | None = None,
    xlim: Limits | None = None,
    ylim: Limits | None = None,
) -> Figure:
    """A line for each name, its interval as a band (as a bar at a point without a neighbor).

    None among the numbers leaves a gap; None for low and high means no interval. The yardstick, a name and its series,
    is drawn in grey behind the others. xlim, ylim: the axes' ends, to draw several charts to one scale.
    """
    figure, axes = _canvas(xlabel, ylabel, title)
    handles = {}
    for index, (name, one) in enumerate(series.items()):
        color = PALETTE[index % len(PALETTE)]
        dash = DASHES[index // len(PALETTE) % len(DASHES)]
        handles[name] = _line(axes, one, color, MARKERS[index % len(MARKERS)], dash)
    ticks = sorted({x for one in series.values() for x in one[0]})
    if yardstick:
        name, one = yardstick
        handles[name] = _line(axes, _wide(one), MUTED, "", (0, (4, 2)), behind=True)
    if len(ticks) <= 11:
        axes.set_xticks(ticks)
    if xlim:
        axes.set_xlim(xlim)
    elif len(ticks) == 1:
        axes.set_xlim(ticks[0] * 0.5, ticks[0] * 1.5 or 1)
    if ylim:
        axes.set_ylim(ylim)
    axes.xaxis.set_major_formatter(_tick)
    axes.yaxis.set_major_formatter(_tick)
    _legend(figure, handles)
    return figure


@in_style
def stacked_bars(
    categories: Sequence[str],
    parts: Mapping[str, Numbers],
    xlabel: str,
    ylabel: str,
    title: str,
    *,
    top: float | None = None,
    width: int = 0,
) -> Figure:
    """A bar for each category, its parts one above the other; None among the numbers is no part.

    top, width: the axis' end and the number of bars that have room, to draw several charts to one scale.
    """
    figure, axes = _canvas(xlabel, ylabel, title)
    x = np.arange(len(categories))
    below = np.zeros(len(categories))
    handles = {}
    for index, (name, values) in enumerate(parts.items()):
        color = PALETTE[index % len(PALETTE)]
        heights = np.array([value or 0.0 for value in values])
        axes.bar(x, heights, 0.62, bottom=below, color=color, edgecolor=PAPER, linewidth=0.6)
        below += heights
        if any(values):
            handles[name] = Patch(facecolor=color)
    axes.set_xticks(x, categories)
    axes.set_xlim(-0.7, max(len(categories), width, 3) - 0.3)  # a single bar does not fill the chart
    axes.set_ylim(0, top * 1.05 if top else None)
    axes.yaxis.set_major_formatter(_tick)
    _legend(figure, handles)
    return figure


@in_style
def projection_by_round(points: np.ndarray, joined: Sequence[np.ndarray], **about) -> Figure:
    """All points of the plane in grey, and above them the points that joined the pool, in the color of their round.

    Args:
        points: [n, 2].
        joined: by round, indices of points, int [k].
        about: xlabel, ylabel, title, xlim and ylim, the last two None for the chart's own.
    """
    figure, axes = _plane(**about)
    axes.scatter(points[:, 0], points[:, 1], s=8, color=GREY, linewidths=0, rasterized=True)
    rounds = len(joined)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.93, rounds) if rounds > 1 else [0.3])
    for shade, indices in zip(shades, joined, strict=True):
        _picks(axes, points[indices], [shade], "o")
    scale = ScalarMappable(colors.BoundaryNorm(np.arange(rounds + 1) - 0.5, rounds), colors.ListedColormap(shades))
    bar = figure.colorbar(scale, ax=axes, ticks=range(rounds), label="round in which a row joined", fraction=0.04)
    bar.outline.set_visible(False)
    bar.ax.minorticks_off()
    return figure


@in_style
def projection_by_kind(
    points: np.ndarray, joined: Sequence[np.ndarray], kinds: Sequence[str], names: Sequence[str], **about
) -> Figure:
    """All points of the plane, pale, in the colors of their kinds, and above them the points that joined, edged.

    Args:
        points, joined, about: as projection_by_round.
        kinds: every point's.
        names: the kinds in the order of their colors, as of colors_of; points of other kinds are grey.
    """
    figure, axes = _plane(**about)
    all_kinds, picked = np.array(kinds, dtype=object), np.zeros(len(points), dtype=bool)
    picked[np.concatenate([*joined, np.zeros(0, dtype=int)])] = True
    handles = {}
    for nth, name in enumerate([None, *names]):
        of_kind = all_kinds == name if name is not None else ~np.isin(all_kinds, list(names))
        if not of_kind.any():
            continue
        color = GREY if name is None else PALETTE[(nth - 1) % len(PALETTE)]
        marker = "o" if name is None else "o^"[(nth - 1) // len(PALETTE)]
        axes.scatter(*points[of_kind].T, s=7, color=color, marker=marker, alpha=0.3, linewidths=0, rasterized=True)
        _picks(axes, points[of_kind & picked], color, marker)
        label = f"{len(set(all_kinds[of_kind]))} others" if name is None else name if drawable(name) else f"value {nth}"
        handles[label] = Line2D([], [], color=color, marker=marker, linestyle="")
    others = {label: handles.pop(label) for label in list(handles)[:1] if label.endswith(" others")}
    _legend(figure, handles | others)
    return figure


def colors_of(kinds: Sequence[str]) -> list[str]:
    """The kinds that have a color of their own: all, or the commonest where they are more than NAMED_KINDS."""
    counts = Counter(kinds)
    ordered = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return ordered if len(ordered) <= NAMED_KINDS else ordered[: NAMED_KINDS - 1]


def limits(values: Iterable[float | None]) -> Limits | None:
    """The ends of an axis that shows all the values with some room; None without values."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    room = (high - low) * 0.06 or abs(low) * 0.1 or 1.0
    return low - room, high + room


def png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG at twice a screen's resolution, whole or not at all."""
    with matplotlib.rc_context(STYLE), atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=PNG_DPI)


def svg(figure: Figure, alt: str, name: str) -> str:
    """The figure as an <svg> element of an HTML page: described by `alt`, in colors that are the page's CSS variables.

    name: unique in the page; element ids are hashes of it.
    """
    written = io.StringIO()
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": name}
    with matplotlib.rc_context(style):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", dpi=PNG_DPI, metadata=no_metadata)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    (view,) = re.findall(r'viewBox="[^"]*"', head)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view} role="img" aria-label="{html(alt)}"'
    rest = re.sub(r"<style.*?</style>", "", rest, flags=re.DOTALL)  # it would apply to the whole page
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)  # they are the same in every chart, and nothing refers to them
    rest = re.sub(r" font-family: [^;]*;", "", rest)  # the page's font instead
    for color, variable in VARIABLES.items():
        rest = rest.replace(f": {color}", f": var({variable}, {color})")
    return f"{head}>{rest}"


def drawable(text: str) -> bool:
    """Whether the charts' font has all characters of the text."""
    font = ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))
    return text.isprintable() and all(font.get_char_index(ord(character)) for character in text)


def number(value: float) -> str:
    """The value with four digits, or with all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def _canvas(xlabel: str, ylabel: str, title: str, height: float = INCHES[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(INCHES[0], height), layout="constrained")
    axes = figure.subplots()
    for write, text in ((axes.set_xlabel, xlabel), (axes.set_ylabel, ylabel), (axes.set_title, title)):
        write(_short(text, 64), parse_math=False)
    return figure, axes


def _plane(
    *, xlabel: str, ylabel: str, title: str, xlim: Limits | None = None, ylim: Limits | None = None
) -> tuple[Figure, Axes]:
    figure, axes = _canvas(xlabel, ylabel, title, height=4.4)
    axes.grid(visible=False)
    axes.set_facecolor(PLOT_AREA)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set(xlim=xlim, ylim=ylim)
    return figure, axes


def _picks(axes: Axes, points: np.ndarray, color, marker: str) -> None:
    axes.scatter(
        points[:, 0], points[:, 1], s=14, color=color, marker=marker, edgecolors=INK, linewidths=0.35, rasterized=True
    )


def _line(axes: Axes, one: Series, color: str, marker: str, dash, behind: bool = False) -> Line2D:
    x, y, low, high = (np.array([] if part is None else part, dtype=float) for part in one)  # None becomes NaN
    order = 1 if behind else 2
    if len(low):
        known = np.pad(~np.isnan(y), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # at a single point a band is not visible
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0, zorder=order)
        axes.vlines(x[alone], low[alone], high[alone], color=color, linewidth=1.2, alpha=0.7, zorder=order)
    (drawn,) = axes.plot(x, y, color=color, marker=marker, linestyle=dash, zorder=order + 0.5)
    return drawn


def _wide(one: Series) -> Series:
    """The series; one of a single point becomes a line from half its x to one and a half of it."""
    x, y, low, high = one
    return one if len(x) != 1 else ([x[0] * 0.5, x[0] * 1.5], [*y, *y], low and [*low, *low], high and [*high, *high])


def _legend(figure: Figure, handles: dict[str, Line2D | Patch]) -> None:
    names = [_short(name, LONGEST_NAME) for name in handles]
    if not names:
        return
    columns = max(1, min(len(names), 70 // (max(map(len, names)) + 7)))
    shown = figure.legend(
        list(handles.values()), [str(index) for index in range(len(names))], loc="outside lower left", ncols=columns
    )
    for text, name in zip(shown.get_texts(), names, strict=True):  # matplotlib leaves out labels like "_x"
        text.set_parse_math(False)
        text.set_text(name)


def _tick(value: float, _position: float = 0) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _short(text: str, longest: int) -> str:
    """The text with its middle left out when it is longer."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"
