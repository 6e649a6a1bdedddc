"""The record of what GPUs have measured: which backend of an op passed there, and which was the fastest.

Standard library alone, no relative import: setup.py and bench/device.py use it by its path.
"""

import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
RESULTS = "bench/results"
INSTALLED_RECORD = "measured.jsonl"
# A line speaks of these files of its backend alone: a change of the CPU's kernels says nothing about a GPU.
SOURCES = {
    "cuda": ("csrc/*.h", "csrc/bind.cpp", "csrc/cuda/**/*"),
    "triton": ("kernels/triton_ops/*.py",),
}
NO_LINE = "no passing device line for these sources"
FIELDS = {
    "op": str, "backend": str, "dtype": str, "shape": list, "passed": bool, "device": str, "capability": list,
    "date": str, "digest": str,
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """One line of the record: a backend of an op, on one shape and one GPU."""

    op: str
    backend: str
    dtype: str
    shape: tuple
    passed: bool
    p50: float | None  # seconds; None when it did not pass
    device: str
    capability: tuple[int, ...]
    date: str
    current: bool  # whether it is of the present sources


@dataclass(frozen=True)
class Choice:
    """A backend, why it is that one, and the date of the newest line that it rests on."""

    backend: str
    reason: str
    date: str | None = None


def is_checkout(folder: Path) -> bool:
    """Whether the kernels' sources are there, so that a line can be held against them."""
    return (folder / "csrc" / "ops.h").is_file()


def digest(backend: str, checkout: Path = CHECKOUT) -> str:
    """Of a backend's sources, their names and what they hold."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES[backend] for path in checkout.glob(pattern) if path.is_file()}):
        total.update(f"{path.relative_to(checkout).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def lines_of(path: Path) -> list[dict]:
    """The lines that measure an op on a GPU; those of another schema are left aside.

    Raises:
        ValueError: a line that is not JSON; file and line are named.
    """
    kept = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: expected a JSON object, got {text[:60]!r} ({error})") from error
        if _measures_an_op(line):
            kept.append(line)
    return kept


def _measures_an_op(line: object) -> bool:
    if not isinstance(line, dict) or not all(isinstance(line.get(name), kind) for name, kind in FIELDS.items()):
        return False
    timed = isinstance(line.get("p50"), int | float) and line["p50"] > 0
    return line["backend"] in SOURCES and (timed or not line["passed"])


def current_lines(checkout: Path) -> list[dict]:
    """The lines of a checkout's record that are of its present sources."""
    digests = {backend: digest(backend, checkout) for backend in SOURCES}
    found = [line for path in sorted((checkout / RESULTS).glob("*.jsonl")) for line in lines_of(path)]
    return [line for line in found if line["digest"] == digests[line["backend"]]]


def read(folder: Path, digests: dict[str, str] | None) -> list[Measurement]:
    """The record's files in a folder; digests: of the present sources, None where every line is of those."""
    return [
        Measurement(
            op=line["op"], backend=line["backend"], dtype=line["dtype"], shape=tuple(line["shape"]),
            passed=line["passed"], p50=line["p50"] if line["passed"] else None, device=line["device"],
            capability=tuple(line["capability"]), date=line["date"],
            current=digests is None or line["digest"] == digests[line["backend"]],
        )
        for path in sorted(folder.glob("*.jsonl"))
        for line in lines_of(path)
    ]  # fmt: skip


@cache
def record() -> tuple[Measurement, ...]:
    """The record of this installation: the checkout's, or what setup.py put into the wheel; read when first asked for.

    Raises:
        ValueError: as lines_of says.
    """
    if is_checkout(CHECKOUT):
        return tuple(read(CHECKOUT / RESULTS, {backend: digest(backend) for backend in SOURCES}))
    return tuple(read(PACKAGE, None))


def best(
    measurements: Iterable[Measurement],
    op: str,
    dtypes: Sequence[str],
    device: str,
    capability: tuple[int, ...],
    usable: Sequence[str],
) -> Choice:
    """The automatic choice for an op on a GPU, or "reference" when no backend has earned it.

    A backend needs a passing line for each of `dtypes`, and one line that failed rules it out until its sources change:
    a race need not fail twice; so does a whole selection with wrong picks, for every op. Among several, the lowest
    geometric mean over the shapes that all of them have.

    Args:
        measurements: the record.
        op: an op's name.
        dtypes: those that it must serve.
        device, capability: the GPU's name and compute capability. Lines of another GPU of that capability count when
            there are none of this name.
        usable: the backends that can run now; the first wins a tie.
    """
    of_op = [m for m in measurements if m.current and m.op == op and m.dtype in dtypes and m.backend in usable]
    lines = [m for m in of_op if m.device == device] or [m for m in of_op if m.capability == capability]
    here = [m for m in measurements if m.current and m.backend in usable and capability == m.capability]
    wrong_picks = {m.backend for m in here if m.op.startswith("kcenter") and not m.passed}
    failed = sorted(wrong_picks | {m.backend for m in lines if not m.passed})
    seconds = {name: {(m.device, m.dtype, m.shape): m.p50 for m in lines if m.backend == name} for name in usable}
    earned = [
        name for name, cases in seconds.items()
        if name not in failed and {dtype for _, dtype, _ in cases} == set(dtypes)
    ]  # fmt: skip
    if not earned:
        return Choice("reference", NO_LINE + (f"; {' and '.join(failed)} failed a check" if failed else ""))
    shared = sorted(set.intersection(*(set(seconds[name]) for name in earned)), key=str)
    means = {name: statistics.geometric_mean([seconds[name][case] for case in shared] or [1.0]) for name in earned}
    winner = min(earned, key=lambda name: means[name])
    mine = [m for m in lines if m.backend == winner]
    over = f"over {len(shared)} shape{'s' * (len(shared) != 1)}"
    why = [f"{means[winner] / means[name]:.2f} of {name}'s time {over}" for name in earned if name != winner and shared]
    if len(earned) > 1 and not shared:
        why = ["not compared with " + " and ".join(name for name in earned if name != winner) + ": no shape in common"]
    where = " and ".join(sorted({m.device for m in mine}))
    same_kind = "" if where == device else ", a GPU of the same compute capability"
    why = f"{' and '.join(why) or 'the one with passing device lines'}, on {where}{same_kind}"
    return Choice(winner, why, max(m.date for m in mine))
