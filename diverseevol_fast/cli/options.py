"""Options that several commands have."""

import argparse
from typing import Any

from .._common.dtypes import DTYPES
from .._common.errors import InputError
from .._common.messages import shown
from .._common.yaml_values import parse_yaml


def model_options() -> argparse.ArgumentParser:
    """What embed and select say of data and model."""
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--data", help="data set: JSON list, JSON lines, .gz, parquet, a datasets folder, builtin:quickstart"
    )
    model.add_argument("--model", help="a local Hugging Face causal or encoder model, or a hub name")
    model.add_argument("--model-max-length", type=int, default=512, metavar="T", help="cut rows to T tokens (512)")
    model.add_argument(
        "--max-tokens-per-batch", type=_tokens, default="auto", metavar="T",
        help="padding included; 'auto' (default): by a probe on a GPU, 2048 on a CPU",
    )  # fmt: skip
    model.add_argument(
        "--dtype", default="float32", choices=(*DTYPES, "auto"),
        help="of the weights; bfloat16 on a CPU says what it changes (float32)",
    )  # fmt: skip
    model.add_argument("--store-dtype", default="float32", choices=("float32", "float16"), help="of the embeddings")
    model.add_argument("--pooling", choices=("mean", "cls", "last"), help="of the last hidden states (mean)")
    model.add_argument("--attn-implementation", metavar="NAME", help="of transformers: eager, sdpa, flash_attention_2")
    model.add_argument(
        "--template", metavar="alpaca|plain|chat|FILE",
        help="from a row to a text (encoders: plain; causal models: alpaca, chat for conversations)",
    )  # fmt: skip
    model.add_argument("--columns", metavar="MAP", help="other names: '{instruction: question}'")
    model.add_argument("--text-column", metavar="NAME", help="rows of any kind, of which this is the text")
    model.add_argument(
        "--skip-broken", action="store_true", help="leave broken lines and malformed rows aside, and count them"
    )
    model.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return model


def model_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """What model_options gave, as keywords of the package's functions."""
    names = (
        "model", "max_tokens_per_batch", "dtype", "store_dtype", "pooling", "attn_implementation", "template",
        "text_column", "skip_broken", "trust_remote_code",
    )  # fmt: skip
    keywords = {name: getattr(args, name) for name in names}
    return keywords | {"max_length": args.model_max_length, "columns": columns_of(args.columns)}


def columns_of(text: str | None) -> dict[str, str] | None:
    """--columns as a mapping.

    Raises:
        InputError: it is none.
    """
    columns = parse_yaml(text, "--columns") if text else None
    if columns is not None and not isinstance(columns, dict):
        raise InputError(f"--columns: expected a mapping such as '{{instruction: question}}', got {shown(repr(text))}")
    return columns


def add_number(command: argparse.ArgumentParser, option: str, default: float, metavar: str, meaning: str) -> None:
    """An option of the default's type, int or float."""
    command.add_argument(
        option, type=type(default), default=default, metavar=metavar, help=f"{meaning} ({default:g})"
    )  # fmt: skip


def _tokens(text: str) -> int | str:
    return text if text == "auto" else int(text)
