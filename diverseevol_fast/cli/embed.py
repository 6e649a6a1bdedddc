"""`diverseevol embed`: its options and its message."""

import argparse
from pathlib import Path

from .._common.errors import InputError
from .options import keywords, model_options
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    embed = commands.add_parser("embed", parents=[common, model_options()], help="embeddings of a data set as .npy")
    embed.add_argument("--output", type=Path, required=True, metavar="X.npy")
    embed.add_argument("--overwrite", action="store_true", help="replace embeddings of another data set or model")


def execute(args: argparse.Namespace) -> Result:
    """Write the embeddings; the text is their file and shape."""
    from ..embedding.embed import embed

    for name in ("data", "model"):
        if getattr(args, name) is None:
            raise InputError(f"embed: --{name} is missing")
    if args.output.suffix != ".npy":
        raise InputError(f"--output {args.output}: expected a name ending in .npy")
    kwargs = keywords(args)
    embedded = embed(store=kwargs.pop("output"), **kwargs)
    rows, dimension = embedded.values.shape
    return Result(
        f"{args.output}: {rows} x {dimension} {args.store_dtype}",
        {"output": str(args.output), "rows": rows, "dimension": dimension, "dtype": args.store_dtype}
        | {"metrics": embedded.metrics},
    )
