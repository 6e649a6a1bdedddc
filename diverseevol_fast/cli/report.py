"""`diverseevol report`."""

import argparse
from pathlib import Path

from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """The command's options."""
    report = commands.add_parser(
        "report", parents=[common], help="one HTML page on one or more runs",
        description="A self-contained HTML file, and its charts as PNGs in a folder beside it.",
    )  # fmt: skip
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--judgements", type=Path, nargs="+", metavar="FILE", help="of judge: <...>/<run>/rd_<r>...")
    report.add_argument("--output", type=Path, metavar="FILE.html", help="(report.html in the first run's folder)")


def execute(args: argparse.Namespace) -> Result:
    """Call the package's function and say what came of it."""
    from ..evaluate.report.report import write_report

    return write_report(args)
