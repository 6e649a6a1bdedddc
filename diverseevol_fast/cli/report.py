"""`diverseevol report`."""

import argparse
from pathlib import Path

from .options import keywords
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    description = "A self-contained HTML file, and its charts as PNGs in a folder beside it."
    report = commands.add_parser(
        "report", parents=[common], help="one HTML page on one or more runs", description=description
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    report.add_argument("--judgements", type=Path, nargs="+", metavar="FILE", help="of judge: <...>/<run>/rd_<r>...")
    report.add_argument("--answers", type=Path, nargs="+", metavar="FILE", help="of generate: <...>/<run>/rd_<r>.jsonl")
    report.add_argument("--output", type=Path, metavar="FILE.html", help="(report.html in the first run's folder)")


def execute(args: argparse.Namespace) -> Result:
    """Write the report; the text has its files and its verdict."""
    from ..evaluate.report.report import report

    made = report(**keywords(args))
    rounds = ", ".join(f"{name} ({count} rounds)" for name, count in made.runs)
    first = f"{made.output}: {rounds}; {made.charts} charts in {made.charts_folder}"
    return Result("\n".join([first, *made.verdict]), made.to_dict())
