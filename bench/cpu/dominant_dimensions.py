"""What the few dimensions that dominate a language model's hidden states do to a selection: its passes, its picks.

    python bench/cpu/dominant_dimensions.py DATA.jsonl.gz [--output bench/results/NAME.jsonl]

Takes the hidden states that real_embeddings.py made of the data, as they are, without their most spread dimensions,
standardized, and whitened; 100 random rows are the centers, and 100 are picked.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from real_embeddings import ROOT, kept
from selection import machine

from diverseevol_fast import kcenter, load_data
from diverseevol_fast.selection.whitening import whiten

CENTERS = PICKS = 100
DROPPED = (1, 5, 10)
COMPONENTS = (16, 64, 256)


def variants(x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The embeddings [N, D] as they are, and changed."""
    order = x.std(dim=0).argsort(descending=True)
    yield "as they are", x
    for count in DROPPED:
        fewer = x.clone()
        fewer[:, order[:count]] = 0
        yield f"without the {count} most spread dimensions", fewer
    yield "each dimension divided by its standard deviation", x / x.std(dim=0)
    for count in COMPONENTS:
        yield f"whitened, {count} components", whiten(x, count)


def spread_of(x: torch.Tensor) -> dict[str, float]:
    """How unevenly the variance is spread over dimensions."""
    deviation = x.double().std(dim=0).sort(descending=True).values
    variance = deviation**2
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    return {
        "largest_by_median_deviation": float(deviation[0] / deviation.median()),
        "variance_in_10_dimensions": float(variance[:10].sum() / variance.sum()),
        "mean_cosine": float((unit.sum(dim=0).square().sum() - len(x)) / (len(x) * (len(x) - 1))),
    }


def measure(x: torch.Tensor, sources: list[str]) -> Iterator[dict]:
    """A line for each variant."""
    centers = np.random.default_rng(0).choice(len(x), CENTERS, replace=False)
    plain: set[int] = set()
    for name, values in variants(x):
        result = kcenter(values, PICKS, centers=centers)
        picked = set(result.indices.tolist())
        plain = plain or picked
        yield {
            "embeddings": name,
            "passes": result.passes,
            "same_picks": len(picked & plain),
            "sources": len({sources[i] for i in picked}),
        } | spread_of(values)


def random_line(sources: list[str]) -> dict:
    """What random picks reach, the mean of ten draws."""
    draws = (np.random.default_rng(seed).choice(len(sources), PICKS, replace=False) for seed in range(10))
    return {"embeddings": "random rows", "sources": float(np.mean([len({sources[i] for i in draw}) for draw in draws]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "dominant-dimensions.jsonl")
    args = parser.parse_args()
    rows = load_data(args.data)[0].rows
    x = torch.from_numpy(np.load(kept("hidden-states", len(rows))))
    sources = [row["source"] for row in rows]
    lines = [*measure(x, sources), random_line(sources)]
    columns = {key: "{:.4g}" for key in lines[0]} | {"embeddings": "{}"}
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for line in lines:
        cells = (form.format(line[key]) if key in line else "" for key, form in columns.items())
        print("| " + " | ".join(cells) + " |")
    with open(args.output, "a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line | {"n": len(x), "d": x.shape[1]} | machine()) + "\n")


if __name__ == "__main__":
    main()
