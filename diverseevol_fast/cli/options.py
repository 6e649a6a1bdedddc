"""Options that several commands share."""

import argparse
from typing import Any

from .._common.dtypes import DTYPES
from .._common.errors import InputError
from .._common.messages import shown
from .._common.yaml_values import parse_yaml

NO_KEYWORDS = ("command", "keys", "quiet", "debug", "json")  # options of the command line itself


def model_options() -> argparse.ArgumentParser:
    """The options of data and model, which embed and select share."""
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--data", help="data set: JSON list, JSON lines, .gz, parquet, a datasets folder, builtin:quickstart"
    )
    model.add_argument("--model", help="a local Hugging Face causal or encoder model, a hub name, or a .gguf file")
    model.add_argument(
        "--model-max-length", dest="max_length", type=int, default=512, metavar="T", help="cut rows to T tokens (512)"
    )
    model.add_argument(
        "--max-tokens-per-batch",
        type=_tokens,
        default="auto",
        metavar="T",
        help="padding included; 'auto' (default): by a probe on a GPU, 2048 on a CPU",
    )
    model.add_argument(
        "--dtype",
        default="float32",
        choices=(*DTYPES, "auto"),
        help="of the weights; bfloat16 on a CPU says what it changes (float32)",
    )
    model.add_argument("--store-dtype", default="float32", choices=("float32", "float16"), help="of the embeddings")
    model.add_argument("--pooling", choices=("mean", "cls", "last"), help="of the last hidden states (mean)")
    model.add_argument("--attn-implementation", metavar="NAME", help="of transformers: eager, sdpa, flash_attention_2")
    model.add_argument(
        "--template",
        metavar="alpaca|plain|chat|FILE",
        help="from a row to a text (encoders: plain; causal models: alpaca, chat for conversations)",
    )
    model.add_argument("--columns", metavar="MAP", help="other names: '{instruction: question}'")
    model.add_argument("--text-column", metavar="NAME", help="rows of any kind, of which this is the text")
    model.add_argument(
        "--skip-broken", action="store_true", help="leave broken lines and malformed rows aside, and count them"
    )
    model.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    return model


def keywords(args: argparse.Namespace) -> dict[str, Any]:
    """The options as keywords of the command's function, whose parameters they are named for."""
    kwargs = {name: value for name, value in vars(args).items() if name not in NO_KEYWORDS}
    return kwargs | ({"columns": columns_of(args.columns)} if "columns" in args else {})


def columns_of(text: str | None) -> dict[str, str] | None:
    """The value of --columns as a mapping.

    Raises:
        InputError: it is not a mapping.
    """
    columns = parse_yaml(text, "--columns") if text else None
    if columns is not None and not isinstance(columns, dict):
        raise InputError(f"--columns: expected a mapping such as '{{instruction: question}}', got {shown(repr(text))}")
    return columns


def add_number(command: argparse.ArgumentParser, option: str, default: float, metavar: str, meaning: str) -> None:
    """Add an option of the default's type, int or float."""
    meaning = f"{meaning} ({default:g})"
    command.add_argument(option, type=type(default), default=default, metavar=metavar, help=meaning)


def _tokens(text: str) -> int | str:
    return text if text == "auto" else int(text)
