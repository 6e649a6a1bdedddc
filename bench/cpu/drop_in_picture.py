"""Draws bench/results/drop-in-cpu.png, the picture of the front page, from the lines of bench/cpu/drop_in.py.

python bench/cpu/drop_in_picture.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).resolve().parents[1] / "results"
ROWS = 15_000


def lines() -> list[dict]:
    """The last line of each project at ROWS rows, the slowest project first."""
    last = {}
    for text in (RESULTS / "drop-in-cpu.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["n"] == ROWS:
            last[line["target"]] = line
    return sorted(last.values(), key=lambda line: -line["theirs"]["seconds"])


def draw(found: list[dict]) -> plt.Figure:
    """For each project two bars on a logarithmic axis: its own selection, and ours under its call."""
    figure, axes = plt.subplots(figsize=(8, 2.9), layout="constrained")
    for place, line in enumerate(found):
        own, ours = line["theirs"]["seconds"], line["ours"]["seconds"]
        axes.barh(place - 0.2, own, 0.38, color="0.6", label="its own selection" if place == 0 else None)
        axes.barh(place + 0.2, ours, 0.38, color="C1", label="diverseevol_fast under it" if place == 0 else None)
        axes.annotate(f"{own / ours:,.0f}x", (own, place - 0.2), (4, 0), textcoords="offset points", va="center")
    axes.set(xscale="log", yticks=range(len(found)), yticklabels=[line["target"] for line in found])
    shape = f"{ROWS:,} rows of {found[0]['d']} dimensions, {found[0]['threads']} CPU threads"
    axes.set_xlabel(f"seconds (log scale), {shape}")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    draw(lines()).savefig(RESULTS / "drop-in-cpu.png", dpi=130)
