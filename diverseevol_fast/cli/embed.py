"""`diverseevol embed`."""

import argparse
from pathlib import Path

from .options import model_options
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """The command's options."""
    embed = commands.add_parser("embed", parents=[common, model_options()], help="embeddings of a data set as .npy")
    embed.add_argument("--output", type=Path, required=True, metavar="X.npy")
    embed.add_argument("--overwrite", action="store_true", help="replace embeddings of another data set or model")


def execute(args: argparse.Namespace) -> Result:
    """Call the package's function and say what came of it."""
    from ..subset import embed_data

    return embed_data(args)
