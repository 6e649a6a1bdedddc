"""The report on runs: one self-contained HTML page, and its charts as PNGs beside it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._common.errors import InputError
from ...runs.finished import FinishedRun, read_run
from ..judge.answer_pairs import read_answers
from ..judge.score import Scores, scores_of

if TYPE_CHECKING:
    from .answers_section import Answers

ROUND = re.compile(r"rd_(\d+)(?!\d)")  # how the name of a round's file begins

PathOrPaths = str | Path | Sequence[str | Path]
Judged = list[dict[str, dict[int, Scores]]]  # for each run: by test, then by round


@dataclass(frozen=True, repr=False)
class Report:
    """Where a report was written, and what it says."""

    output: Path  # the page
    charts: int
    charts_folder: Path
    verdict: list[str]  # the sentences at the top of the page
    runs: list[tuple[str, int]]  # name in the report, number of finished rounds

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        runs = [{"name": name, "rounds": rounds} for name, rounds in self.runs]
        files = {"output": str(self.output), "charts": self.charts, "charts_folder": str(self.charts_folder)}
        return files | {"verdict": self.verdict, "runs": runs}

    def __repr__(self) -> str:
        names = ", ".join(name for name, _ in self.runs)
        return f"Report({str(self.output)!r}, runs: {names}; {self.charts} charts)"


def report(
    runs: PathOrPaths,
    *,
    judgements: PathOrPaths | None = None,
    answers: PathOrPaths | None = None,
    output: str | Path | None = None,
) -> Report:
    """Write an HTML page on one or more finished runs, and its charts as PNGs in a folder beside it.

    Args:
        runs: folders of runs.
        judgements: files <test>/<run>/rd_<round>...jsonl that `diverseevol judge` wrote.
        answers: files <test>/<run>/rd_<round>.jsonl that `diverseevol generate` wrote; the page shows ten questions.
        output: the page's name; None: report.html in the first run's folder.

    Returns:
        Report: where the page and its charts are, and the sentences of the verdict.

    Raises:
        InputError: matplotlib or scipy is not installed; a folder without a run, or the same run twice; a file of
            judgements or answers that fits no run; data or a model that is no longer there; a page that cannot be
            written.
    """
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError("report: needs matplotlib and scipy; pip install 'matplotlib>=3.9' 'scipy>=1.11'") from error
    from .contents import blocks_of, records_of, write_page
    from .verdict import verdict

    folders = _paths(runs)
    if not folders:
        raise InputError("runs: expected the folder of at least one run")
    page = _page_path(output, folders[0])
    finished = [read_run(folder) for folder in folders]
    if not writable(page.parent):
        raise InputError(f"output: {page.parent} is not writable; name a file in another folder")
    names = unique_names([run.state.folder for run in finished])
    judged = match_judgements(_paths(judgements), finished)
    answered = _match_answers(_paths(answers), finished, names)
    charts_folder = page.with_name(f"{page.stem}_files")
    measured_in = [
        None if writable(run.state.folder / "diversity") else charts_folder / "diversity" / name.replace("/", "-")
        for run, name in zip(finished, names, strict=True)
    ]
    blocks = blocks_of(records_of(finished, names, judged, measured_in))
    sentences = verdict(blocks)
    charts = write_page(page, charts_folder, blocks, sentences, answered)
    rounds = [run.rounds for run in finished]
    return Report(page, charts, charts_folder, sentences, list(zip(names, rounds, strict=True)))


def writable(folder: Path) -> bool:
    """Whether files may be made in the folder, or it may be made."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def unique_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as many of its parents' names before it as tell the folders apart.

    Raises:
        InputError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for index, one in enumerate(parts):
        if one in parts[:index]:
            raise InputError(f"{folders[index]}: is given twice; expected each run once")
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(part[-length:]) for part, length in zip(parts, lengths, strict=True)]
        shared = [names.count(name) > 1 for name in names]
        if not any(shared):
            return names
        lengths = [length + more for length, more in zip(lengths, shared, strict=True)]


def match_judgements(files: Sequence[Path], runs: Sequence[FinishedRun]) -> Judged:
    """The scores of judgement files <test>/<run>/rd_<r>*.jsonl, for the runs and rounds that their paths name.

    A test is called by its folder, the reference and, where the file says it, the judge.

    Raises:
        InputError: as scores_of; a file that fits no run or more than one, or not a round of it, or a second one of
            the same test and round.
    """
    judged: Judged = [{} for _ in runs]
    source: dict[tuple[int, str, int], Path] = {}
    for path in files:
        index, r = _run_and_round(path, runs)
        scores = scores_of(path)
        judge = f", judged by {scores.judge}" if scores.judge else ""
        test = f"{path.resolve().parents[1].name} against {scores.reference}{judge}"
        if first := source.get((index, test, r)):
            raise InputError(f"{path}: round {r} of {runs[index].name} has scores of {test} from {first}")
        source[index, test, r] = path
        judged[index].setdefault(test, {})[r] = scores
    return judged


def _match_answers(files: Sequence[Path], runs: Sequence[FinishedRun], names: Sequence[str]) -> list["Answers"]:
    """The answers in files <test>/<run>/rd_<r>*.jsonl.

    Raises:
        InputError: as read_answers; a file that fits no run or more than one, or not a round of it.
    """
    from .answers_section import Answers

    found = []
    for path in files:
        index, r = _run_and_round(path, runs)
        found.append(Answers(path.resolve().parents[1].name, f"{names[index]}, round {r}", read_answers(path)))
    return found


def _paths(value: PathOrPaths | None) -> list[Path]:
    if value is None:
        return []
    return [Path(value)] if isinstance(value, str | Path) else [Path(one) for one in value]


def _page_path(output: str | Path | None, first_run: Path) -> Path:
    """
    Raises:
        InputError: the output is no name of an HTML file.
    """
    page = first_run / "report.html" if output is None else Path(output)
    if page.suffix not in (".html", ".htm"):
        raise InputError(f"output: expected a name that ends in .html, got {page}")
    if page.is_dir():
        raise InputError(f"output: {page} is a folder; expected the name of a file")
    return page


def _run_and_round(path: Path, runs: Sequence[FinishedRun]) -> tuple[int, int]:
    """The run, as an index, and the round that the path of a file of judgements or answers names.

    Raises:
        InputError: it fits no run or more than one, or not a round of it.
    """
    name = path.resolve().parent.name
    matches = [index for index, run in enumerate(runs) if run.name == name]
    number = ROUND.match(path.name)
    if not number or not matches:
        raise InputError(
            f"{path}: expected <test>/<run>/rd_<round>...jsonl of a run in this report "
            f"({', '.join(run.name for run in runs)})"
        )
    if len(matches) > 1:
        folders = " and ".join(str(runs[index].state.folder) for index in matches)
        raise InputError(f"{path}: {folders} both have that name; make a report of each, or rename one")
    (index,), r = matches, int(number[1])
    if r >= runs[index].rounds:
        raise InputError(f"{path}: {name} has no round {r}; its rounds are 0 to {runs[index].rounds - 1}")
    return index, r
