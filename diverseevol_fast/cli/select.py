"""`diverseevol select`: its options and its message."""

import argparse
from pathlib import Path

from ..data.export import TRAINERS
from .options import keywords, model_options
from .result import Result


def add_parser(commands, common: argparse.ArgumentParser) -> None:
    """Add the command and its options."""
    select = commands.add_parser(
        "select",
        parents=[common, model_options()],
        help="a diverse subset of a data set",
        description="Pick the N rows that K-Center greedy picks, and write them in the input's own schema.",
    )
    select.add_argument(
        "--embeddings", type=Path, metavar="X.npy", help="instead of --model: [N, D] float32 or float16"
    )
    select.add_argument("-n", type=int, required=True, metavar="N", help="how many rows to pick")
    select.add_argument(
        "--selected",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="rows already selected, all of them: JSON lists, picks.json, .npy",
    )
    select.add_argument("--output", type=Path, metavar="FILE", help="the picked rows (subset.jsonl); needs --data")
    select.add_argument(
        "--for",
        dest="trainer",
        choices=TRAINERS,
        help="write the rows as this trainer reads them, and say what to tell it",
    )
    select.add_argument("--picks", type=Path, metavar="FILE", help="the record (<output>.picks.json beside the output)")
    select.add_argument("--overwrite", action="store_true", help="replace what was made from another input")
    select.add_argument(
        "--no-keep-embeddings",
        dest="keep_embeddings",
        action="store_false",
        help="do not keep <output>.embeddings.npy, with which another N is instant",
    )
    select.add_argument(
        "--allow-other-data",
        action="store_true",
        help="take --embeddings or --selected of another data set: their row numbers are right all the same",
    )
    select.add_argument("--skip-empty", action="store_true", help="leave rows with an empty instruction or output out")
    select.add_argument("--seed", type=int, default=0, help="draws the first row when nothing is selected yet (0)")


def execute(args: argparse.Namespace) -> Result:
    """Write the picked rows and their record; the text is a line for each file."""
    from ..data.input_files import load_embeddings
    from ..subset import select

    output = args.output or (Path("subset.jsonl") if args.data else None)
    picks = args.picks
    if output is None and picks is None and args.embeddings is not None:
        picks = Path(f"{args.embeddings.stem}.picks.json")
    kwargs = keywords(args)
    kwargs |= {"output": output, "picks": picks}
    selection = select(**kwargs)
    lines = []
    if selection.output:
        lines = [f"{selection.output}: {len(selection.indices)} rows", *selection.trainer_notes]
    if selection.embeddings:
        rows, width = load_embeddings(selection.embeddings).shape
        size = selection.embeddings.stat().st_size / 1e6
        lines.append(
            f"{selection.embeddings}: {rows} x {width} embeddings, {size:,.1f} MB, kept for another -n "
            "(--no-keep-embeddings)"
        )
    lines.append(f"{selection.picks}: {len(selection.indices)} picks in {selection.record['seconds']:.2f} s")
    return Result("\n".join(lines), selection.to_dict())
