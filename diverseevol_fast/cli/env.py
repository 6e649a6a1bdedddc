"""`diverseevol env`."""

import argparse

from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    env = commands.add_parser("env", parents=[common], help="versions, CPU, GPU, and which backends can be used")
    env.add_argument("--check", action="store_true", help="check every GPU kernel on every GPU here, and remember it")


def execute(args: argparse.Namespace) -> Result:
    """This machine's hardware, versions and backends, or with --check whether each GPU kernel passes."""
    from .environment import check_kernels, describe

    return check_kernels() if args.check else describe()
