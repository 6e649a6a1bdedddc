"""`diverseevol report`: one HTML page on one or more runs, self-contained, and its charts as PNGs beside it."""

import argparse
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ... import __version__
from ..._common.errors import InputError
from ..._common.files import atomic_path
from ...cli.result import Result
from ...runs.finished import FinishedRun, read_run
from ..judge.score import Scores, scores_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..evaluation_encoder import EmbeddingSpace
    from .metrics import Block
    from .sections import Draw
    from .seeds import Record

log = logging.getLogger("diverseevol_fast")

ROUND = re.compile(r"rd_(\d+)(?!\d)")  # how the name of a round's file begins

Judged = dict[int, dict[str, dict[int, Scores]]]  # by the run's place in the report, test, round


def write_report(args: argparse.Namespace) -> Result:
    """`diverseevol report`: writes the page and its charts; the text ends with its verdict.

    Raises:
        InputError: matplotlib is not installed; something that is no run, or the same run twice; a judgement file that
            fits no run; data or a model that is no longer there; a page that could not be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("report: needs matplotlib; pip install 'matplotlib>=3.9'") from error
    from .verdict import verdict

    output = args.output or args.runs[0] / "report.html"
    if output.suffix not in (".html", ".htm"):
        raise InputError(f"--output: expected a name that ends in .html, got {output}")
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder; expected the name of a file")
    runs = [read_run(folder) for folder in args.runs]
    if not writable(output.parent):
        advice = "give another place" if args.output else "give --output FILE.html to write the page elsewhere"
        raise InputError(f"report: {output.parent} is not writable; {advice}")
    names = unique_names([run.state.folder for run in runs])
    judged = match_judgements(args.judgements or [], runs)
    kept = _files(output) / "diversity"
    folders = [
        None if writable(run.state.folder / "diversity") else kept / name.replace("/", "-")
        for run, name in zip(runs, names, strict=True)
    ]
    blocks = blocks_of(look_at_runs(runs, names, judged, folders))
    charts = write_page(output, blocks)
    sentences = verdict(blocks)
    rounds = ", ".join(f"{name} ({run.rounds} rounds)" for name, run in zip(names, runs, strict=True))
    return Result(
        "\n".join([f"{output}: {rounds}; {charts} charts in {_files(output)}", *sentences]),
        {"output": str(output), "charts": charts, "charts_folder": str(_files(output)), "verdict": sentences}
        | {"runs": [{"name": name, "rounds": run.rounds} for name, run in zip(names, runs, strict=True)]},
    )


def writable(folder: Path) -> bool:
    """Whether files may be made in the folder, or it may be made."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as much of the path before it as it takes to tell them apart.

    Raises:
        InputError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for place, one in enumerate(parts):
        if one in parts[:place]:
            raise InputError(f"{folders[place]}: is given twice; expected each run once")
    longest = [1] * len(parts)
    while True:
        names = ["/".join(part[-count:]) for part, count in zip(parts, longest, strict=True)]
        alike = [names.count(name) > 1 for name in names]
        if not any(alike):
            return names
        longest = [count + more for count, more in zip(longest, alike, strict=True)]


def match_judgements(files: Sequence[Path], runs: Sequence[FinishedRun]) -> Judged:
    """The scores of judgement files <test>/<run>/rd_<r>*.jsonl, for the runs and rounds that their paths name.

    A test is called by its folder, the reference and, where the file says it, the judge.

    Raises:
        InputError: as scores_of; a file that fits no run or more than one, or not a round of it, or a second one of
            the same test and round.
    """
    judged: Judged = {place: {} for place in range(len(runs))}
    read: dict[tuple[int, str, int], Path] = {}
    for path in files:
        place, r = _run_and_round(path, runs)
        scores = scores_of(path)
        judge = f", judged by {scores.judge}" if scores.judge else ""
        test = f"{path.resolve().parents[1].name} against {scores.reference}{judge}"
        if (place, test, r) in read:
            raise InputError(
                f"{path}: round {r} of {runs[place].name} has scores of {test} from {read[place, test, r]}"
            )
        read[place, test, r] = path
        judged[place].setdefault(test, {})[r] = scores
    return judged


def look_at_runs(
    runs: Sequence[FinishedRun], names: Sequence[str], judged: Judged, folders: Sequence[Path | None]
) -> "list[Record]":
    """Measures the runs. Those on one data set are embedded in one space: plain texts by the first one's base model.

    folders: for each run where its embeddings and measures are kept; None: RUN/diversity.
    """
    from ..diversity import measure_run
    from ..evaluation_encoder import fixed_embeddings, fixed_space
    from .charts import drawable
    from .examples import Plane, look_at, plane_of
    from .seeds import Record

    spaces: dict[str, EmbeddingSpace] = {}  # by data set
    planes: dict[str, Plane] = {}  # the same
    records = []
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        data = _provenance(run, "data_sha256")
        space = spaces[data] = spaces.get(data) or replace(fixed_space(run), plain_texts=True)
        log.info("report: %s", name)
        metrics = [run.state.metrics(r) for r in range(run.rounds)]
        sizes = [len(run.pool(r)) for r in range(run.rounds)]
        x = fixed_embeddings(run, space, folders[place])
        diversity = measure_run(run, space=space, centred=True, folder=folders[place])
        planes[data] = planes.get(data) or plane_of(x)
        picked = look_at(run, x, planes[data])
        label = name if drawable(name) else f"run {place + 1}"
        records.append(Record(run, name, label, metrics, sizes, judged[place], diversity, picked))
    return records


def write_page(output: Path, blocks: "Sequence[Block]") -> int:
    """The page and its charts' PNGs, in a folder beside it; returns how many charts."""
    from . import charts, page, picks_section, sections, text

    folder = _files(output)
    drawn: set[str] = set()

    def drawing(prefix: str) -> "Draw":
        def draw(name: str, chart: "Figure", alt: str, caption: object) -> page.Html:
            name = f"{prefix}{name}"
            while name in drawn:  # tests whose names differ in letters that a file's name leaves out
                name += "-more"
            drawn.add(name)
            charts.png(chart, folder / f"{name}.png")
            return page.figure(charts.svg(chart, alt, name), caption)

        return draw

    def part(section: "Callable[[Block, Draw], page.Html]") -> page.Html:
        if len(blocks) == 1:
            return section(blocks[0], drawing(""))
        return page.join([
            page.join([page.element("h3", f"Data set: {block.title}"), section(block, drawing(f"data-{number}-"))])
            for number, block in enumerate(blocks, 1)
        ])  # fmt: skip

    names = [line.name for block in blocks for line in block.lines]
    count = sum(len(line.records) for block in blocks for line in block.lines)
    title = f"DiverseEvol report: {', '.join(names) if len(names) < 4 else f'{count} runs'}"
    parts = [
        ("runs", "What this is", text.runs_section(blocks)),
        ("quality", "How good the models are", part(sections.quality_section)),
        ("diversity", "How diverse the pools are", part(sections.diversity_section)),
        ("cost", "What it cost", part(sections.cost_section)),
        ("picked", "What was picked", part(picks_section.picks_section)),
        ("reading", "How to read this", text.reading_section(blocks)),
    ]
    foot = f"Written by diverseevol_fast {__version__}. The charts are PNG files in {folder.name}/ too."
    text = page.page(title, text.summary(blocks), parts, foot)
    with atomic_path(output) as partial:
        partial.write_text(text, encoding="utf-8")
    return len(drawn)


def blocks_of(records: "Sequence[Record]") -> "list[Block]":
    """The records by data set, what differs in the seed alone as one line."""
    from .metrics import Block
    from .seeds import lines_of

    by_data: dict[str, list[Record]] = {}
    for record in records:
        by_data.setdefault(_provenance(record.run, "data_sha256"), []).append(record)
    titles = [Path(group[0].run.config.full_data_path).name for group in by_data.values()]
    return [
        Block(title if titles.count(title) == 1 else f"{title} ({digest[:8]})", lines_of(group))
        for title, (digest, group) in zip(titles, by_data.items(), strict=True)
    ]


def _files(output: Path) -> Path:
    """The folder of a page's charts."""
    return output.with_name(f"{output.stem}_files")


def _run_and_round(path: Path, runs: Sequence[FinishedRun]) -> tuple[int, int]:
    name = path.resolve().parent.name
    found = [place for place, run in enumerate(runs) if run.name == name]
    number = ROUND.match(path.name)
    if not number or not found:
        raise InputError(
            f"{path}: expected <test>/<run>/rd_<round>...jsonl of a run in this report "
            f"({', '.join(run.name for run in runs)})"
        )
    if len(found) > 1:
        folders = " and ".join(str(runs[place].state.folder) for place in found)
        raise InputError(f"{path}: {folders} both have that name; make a report of each, or rename one")
    r = int(number[1])
    if r >= runs[found[0]].rounds:
        raise InputError(f"{path}: {name} has no round {r}; its rounds are 0 to {runs[found[0]].rounds - 1}")
    return found[0], r


def _provenance(run: FinishedRun, key: str) -> str:
    return run.state.manifest(0)["provenance"][key]
