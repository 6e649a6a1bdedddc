"""What is in a report: the runs' measurements, runs on one data set together, and the page that shows them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from ..._common.files import atomic_path
from ..._common.version import __version__
from ...runs.finished import FinishedRun
from ..diversity import measure_run
from ..evaluation_encoder import EmbeddingSpace, fixed_embeddings, fixed_space
from ..judge.score import Scores
from . import charts, sections
from .answers_section import Answers, answers_section
from .examples import Plane, picks_of, plane_of
from .metrics import Block
from .page import Chart, Draw, render
from .picks_section import picks_section
from .seeds import Record, lines_of

log = logging.getLogger("diverseevol_fast")


def records_of(
    runs: Sequence[FinishedRun],
    names: Sequence[str],
    judged: Sequence[dict[str, dict[int, Scores]]],
    folders: Sequence[Path | None],
) -> list[Record]:
    """Measure the runs. Those on one data set are embedded in one space: plain texts by the first one's base model.

    judged: for each run, its scores by test and round. folders: for each run, where its embeddings and measures are
    stored; None: RUN/diversity.
    """
    spaces: dict[str, EmbeddingSpace] = {}  # by data set
    planes: dict[str, Plane] = {}  # by data set
    measured_in: list[Path] = []  # the folders of the runs so far
    records = []
    for number, (run, name, scores, folder) in enumerate(zip(runs, names, judged, folders, strict=True), 1):
        data = _data_sha256(run)
        space = spaces[data] = spaces.get(data) or replace(fixed_space(run), plain_texts=True)
        log.info("report: %s", name)
        metrics = [run.state.metrics(r) for r in range(run.rounds)]
        sizes = [len(run.pool(r)) for r in range(run.rounds)]
        x = fixed_embeddings(run, space, folder, others=measured_in)
        measured_in.append(folder or run.state.folder / "diversity")
        diversity = measure_run(run, space=space, centered=True, folder=folder)
        planes[data] = planes.get(data) or plane_of(x)
        picked = picks_of(run, x, planes[data])
        label = name if charts.drawable(name) else f"run {number}"
        records.append(Record(run, name, label, metrics, sizes, scores, diversity, picked))
    return records


def blocks_of(records: Sequence[Record]) -> list[Block]:
    """The records by data set; runs that differ in the seed alone are one line."""
    by_data: dict[str, list[Record]] = {}
    for record in records:
        by_data.setdefault(_data_sha256(record.run), []).append(record)
    titles = [Path(group[0].run.config.full_data_path).name for group in by_data.values()]
    return [
        Block(title if titles.count(title) == 1 else f"{title} ({digest[:8]})", lines_of(group))
        for title, (digest, group) in zip(titles, by_data.items(), strict=True)
    ]


def write_page(
    output: Path, folder: Path, blocks: Sequence[Block], verdict: Sequence[str], answers: Sequence[Answers]
) -> int:
    """Write the page, and its charts as PNGs in the folder; returns how many charts."""
    drawn: set[str] = set()

    def drawing(prefix: str) -> Draw:
        def draw(name: str, chart: Figure, alt: str, caption: str) -> Chart:
            name = f"{prefix}{name}"
            while name in drawn:  # tests whose names differ in letters that a file's name leaves out
                name += "-more"
            drawn.add(name)
            charts.png(chart, folder / f"{name}.png")
            return Chart(Markup(charts.svg(chart, alt, name)), caption)

        return draw

    def by_data_set(section: Callable[[Block, Draw], Markup]) -> Markup:
        if len(blocks) == 1:
            return section(blocks[0], drawing(""))
        return Markup("").join(
            Markup("<h3>Data set: {}</h3>\n{}").format(block.title, section(block, drawing(f"data-{number}-")))
            for number, block in enumerate(blocks, 1)
        )

    names = [line.name for block in blocks for line in block.lines]
    count = sum(len(line.records) for block in blocks for line in block.lines)
    page = render(
        "page",
        title=f"DiverseEvol report: {', '.join(names) if len(names) < 4 else f'{count} runs'}",
        verdict=verdict,
        sections=[
            ("runs", "What this is", sections.runs_section(blocks)),
            ("quality", "How good the models are", by_data_set(sections.quality_section)),
            ("diversity", "How diverse the pools are", by_data_set(sections.diversity_section)),
            ("cost", "What it cost", by_data_set(sections.cost_section)),
            ("picked", "What was picked", by_data_set(picks_section)),
            *([("answers", "What the models answer", answers_section(answers))] if answers else []),
            ("reading", "How to read this", sections.reading_section(blocks)),
        ],
        version=__version__,
        folder=folder.name,
    )
    with atomic_path(output) as partial:
        partial.write_text(page, encoding="utf-8")
    return len(drawn)


def _data_sha256(run: FinishedRun) -> str:
    return run.state.manifest(0)["provenance"]["data_sha256"]
