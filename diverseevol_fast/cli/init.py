"""`diverseevol init`: write a commented config."""

import argparse
import os
from dataclasses import MISSING
from pathlib import Path

from .._common.errors import InputError
from .._common.files import atomic_path
from ..runs.settings import DEFAULTS, config_text
from .result import Result

HEADING = (
    "Settings of `diverseevol run`, at their defaults. Each may also be given as --key value, which wins over this "
    "file; --train_args.learning_rate 1e-4 reaches inside. Take the # before a key away to set it."
)


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    init = commands.add_parser(
        "init",
        parents=[common],
        help="write a commented config for a run",
        description="Write a config with every key, its default and what it does. An existing file is never replaced.",
    )
    init.add_argument("file", type=Path, nargs="?", default=Path("config.yml"), metavar="FILE", help="(config.yml)")
    init.add_argument("--data", help="fills full_data_path in")
    init.add_argument("--model", help="fills model_name_or_path in")


def execute(args: argparse.Namespace) -> Result:
    """Write the config to args.file; the text says which keys are still to be filled in.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    path = args.file
    if os.path.lexists(path):
        raise InputError(f"{path}: is there already and is not replaced; name another file")
    values = {"full_data_path": args.data, "model_name_or_path": args.model, "result_dir_name": path.stem}
    values = {key: value for key, value in values.items() if value is not None}
    try:
        with atomic_path(path) as partial:
            partial.write_text(config_text(HEADING, values), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    missing = [key for key, default in DEFAULTS.items() if default is MISSING and key not in values]
    first = f"fill in {' and '.join(missing)}, then: " if missing else ""
    return Result(f"{path}: {first}diverseevol run {path}", {"config": str(path), "fill_in": missing})
