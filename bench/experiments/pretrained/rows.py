"""The rows of the experiment on a real model: bench/cache/pretrained-rows.jsonl, out of real instruction data.

Short rows, drawn with a seed, so that no response is cut off and a run takes minutes on a CPU: 1,700 rows of which a
run keeps 200 for validation, and 200 rows of sources that no pool may have. Every row gets its "group": its source, or,
of the T0 rows, the data set behind its template.
"""

import os
import sys
from pathlib import Path

import numpy as np

from diverseevol_fast.data.dataset import load_data, write_rows

ROOT = Path(__file__).resolve().parents[3]
OUTPUT = ROOT / "bench" / "cache" / "pretrained-rows.jsonl"
SOURCE = "instruct_52k.jsonl.gz"
MOST_CHARACTERS = 400  # of instruction, input and output together: at most about 170 tokens with the template
IN_POOL, KEPT_FROM_POOL = 1700, 200
HELD_OUT = ("gpteacher-codegen", "t0:common_gen", "t0:paws_labeled_final", "t0:rotten_tomatoes")
T0_DATA_SETS = """
adversarial_qa ag_news amazon_polarity app_reviews cnn_dailymail common_gen commonsense_qa cosmos_qa dbpedia_14
dream duorc gigaword glue_mrpc glue_qqp imdb kilt_tasks multi_news paws_labeled_final qasc quarel quartz quoref
ropes rotten_tomatoes samsum sciq social_i_qa wiki_bio wiki_hop wiki_qa wiqa xsum yelp_review_full
"""


def group_of(source: str) -> str:
    """The source, without the template of a T0 row."""
    if not source.startswith("t0:"):
        return source
    return next(f"t0:{name}" for name in T0_DATA_SETS.split() if source.startswith(f"t0:{name}_"))


def draw(rows: list[dict]) -> list[dict]:
    """The experiment's rows, in the order drawn."""
    short = [row for row in rows if sum(len(row[key]) for key in ("instruction", "input", "output")) <= MOST_CHARACTERS]
    short = [row | {"group": group_of(row["source"])} for row in short]
    shuffled = [short[i] for i in np.random.default_rng(0).permutation(len(short))]
    in_pool = [row for row in shuffled if row["group"] not in HELD_OUT][:IN_POOL]
    return in_pool + [row for row in shuffled if row["group"] in HELD_OUT][:KEPT_FROM_POOL]


def main() -> None:
    folder = Path(os.environ.get("DIVERSEEVOL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / SOURCE).is_file():
        sys.exit(f"{folder / SOURCE}: not there; DIVERSEEVOL_DATA names the folder of the real data")
    rows = draw(load_data(folder / SOURCE)[0].rows)
    write_rows(OUTPUT, rows)
    print(f"{OUTPUT}: {len(rows)} rows")


if __name__ == "__main__":
    main()
