"""The rows of the experiment on lazy rounds: bench/cache/lazy-rows-<n>.jsonl, out of real instruction data.

Short rows, drawn with a seed, so that embedding all of them in every round, to compare with, takes minutes on a CPU.
The 1,500 rows are the first of the 5,000.
"""

import os
import sys
from pathlib import Path

import numpy as np

from diverseevol_fast.data.dataset import load_data, write_rows

ROOT = Path(__file__).resolve().parents[3]
SOURCE = "instruct_52k.jsonl.gz"
MOST_CHARACTERS = 200  # of instruction, input and output together
SIZES = (1500, 5000)


def output_file(size: int) -> Path:
    """Where `size` rows are written."""
    return ROOT / "bench" / "cache" / f"lazy-rows-{size}.jsonl"


def draw(rows: list[dict]) -> list[dict]:
    """The short rows in the order drawn."""
    short = [row for row in rows if sum(len(row[key]) for key in ("instruction", "input", "output")) <= MOST_CHARACTERS]
    return [short[i] for i in np.random.default_rng(0).permutation(len(short))]


def main() -> None:
    folder = Path(os.environ.get("DIVERSEEVOL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / SOURCE).is_file():
        sys.exit(f"{folder / SOURCE}: not there; DIVERSEEVOL_DATA names the folder of the real data")
    rows = draw(load_data(folder / SOURCE)[0].rows)
    for size in SIZES:
        write_rows(output_file(size), rows[:size])
        print(f"{output_file(size)}: {size} rows")


if __name__ == "__main__":
    main()
