"""Runs that differ only in their seed are one line of a report: the mean over seeds, with its interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.stats import t as student

from ...models.load import SMALL_LLAMA
from ...runs.finished import FinishedRun
from ..judge.score import Scores
from .examples import Picked

CONFIDENCE = 0.95


class Point(NamedTuple):
    """A figure, and the ends of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval's ends; None: no interval."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Record:
    """A run and its measurements."""

    run: FinishedRun
    name: str  # unique in the report
    label: str  # the name in charts: another one where their font lacks some of the name's characters
    metrics: list[dict[str, Any]]  # by round
    sizes: list[int]  # rows in the pool, by round
    scores: dict[str, dict[int, Scores]]  # by test, then round
    diversity: dict[str, Any]  # as measure_run returns
    picked: Picked


@dataclass(frozen=True)
class Line:
    """What charts show as one line: a run, or runs that differ only in their seed."""

    name: str
    records: list[Record]
    label: str  # the name in charts

    @property
    def rounds(self) -> int:
        """The number of rounds that all its runs have."""
        return min(record.run.rounds for record in self.records)

    @property
    def sizes(self) -> list[int]:
        """Rows in the pool, by round."""
        return self.records[0].sizes[: self.rounds]

    def points(self, read: Callable[[Record, int], Point | None]) -> list[Point | None]:
        """By round, the figure that `read` gives for the run; of several runs, the mean with its t interval.

        None where a run lacks the figure: means over different sets of seeds do not compare.
        """
        return [over_seeds([read(record, r) for record in self.records]) for r in range(self.rounds)]


def lines_of(records: Sequence[Record]) -> list[Line]:
    """The records' lines, in the order in which their first runs come."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_settings(record.run), []).append(record)
    lines: list[Line] = []
    for group in groups.values():
        if len(group) == 1 or len({record.run.config.seed for record in group}) < len(group):
            lines += [line_of(record) for record in group]
            continue
        name = label = f"{strategy(group[0].run)}, {len(group)} seeds"
        if any(name == line.name for line in lines):
            name, label = f"{name} ({group[0].name} ...)", f"{label} ({group[0].label} ...)"
        lines.append(Line(name, group, label))
    return lines


def line_of(record: Record) -> Line:
    """A run by itself."""
    return Line(record.name, [record], record.label)


def strategy(run: FinishedRun) -> str:
    """How the run chose rows."""
    components = run.config.whiten_n_components or 0
    return run.config.evol_schedule_name + (f", whitened to {components}" if components > 0 else "")


def over_seeds(points: Sequence[Point | None]) -> Point | None:
    """One seed's point as it is; of several, the mean with its t interval; None where a seed has none."""
    known = [point for point in points if point is not None]
    if len(known) < len(points):
        return None
    return known[0] if len(known) == 1 else Point(*t_interval([point.value for point in known]))


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of at least two values and the ends of Student's 95% interval: mean -+ t s / sqrt(n), n - 1 degrees."""
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def _settings(run: FinishedRun) -> str:
    """The same text for runs that differ only in their seed; builtin:small-llama's weights come from the seed too."""
    provenance = run.state.manifest(0)["provenance"]
    same = {key: value for key, value in provenance.items() if key != "config.seed"}
    if run.config.model_name_or_path == SMALL_LLAMA:
        same["base_model_sha256"] = SMALL_LLAMA
    return repr(sorted(same.items()))
