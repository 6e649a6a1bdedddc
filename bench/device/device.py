"""What a GPU does with the kernels.

python bench/device/device.py check | measure [--brief] | sanitize TOOL [--output FOLDER]

check: every kernel's large problems against float64, all rows, in processes of their own, several at a time.
measure: ceilings of the card, every op on every kernel beside what others take, whole selections, other projects'
kernels; each in a process of its own, one at a time, checked before it is timed. --brief: one shape for each kernel.
sanitize: compute-sanitizer's memcheck or racecheck over our kernels alone, on small problems.

Lines are appended to FOLDER/<gpu>.jsonl as they come: what crashes, hangs or gives a wrong result is a failing line and
costs nothing else. device_table.py makes the table and the picture, preference.py the order of preference.
Without a GPU `check` and `measure` end with one sentence; --tiny tries them all the same, on small problems.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import device_peers
import device_selections
import torch
from device_cases import CASES, TINY, Case, is_ours, kernel_backends
from device_lines import ROOT, Lines, about_kernel
from device_timing import DEVICE, ceilings, roofline, synchronize, times

from diverseevol_fast.ops import backends, check_child, kernels, self_check
from diverseevol_fast.ops.isolated import Failure, run_isolated, serve
from diverseevol_fast.ops.kernels import Kernel, kernel_named

WORKERS = 6
UNIT_SECONDS = 40.0  # without a word for so long, a unit hangs; Triton and torch.compile compile within it
SEPARATOR = " | "  # between the parts of a unit's name
OTHERS = ("eager", "chunked product", "torch.compile")
VARIANTS = ("triton, bfloat16", "triton, float16", "triton, float32")


def kernels_here() -> list[Kernel]:
    """Those that can run here; without a GPU, Triton's, in its interpreter."""
    capability = torch.cuda.get_device_capability() if DEVICE == "cuda" else (8, 0)
    launchers = [name for name in kernels.LAUNCHERS if backends.unusable(name, DEVICE) is None]
    return [kernel for kernel in kernels.all_kernels(capability) if kernel.launcher in launchers]


def child(work: str, tiny: bool, units: Sequence[str]) -> list[str]:
    """The command of a child that does these units."""
    return [sys.executable, str(Path(__file__).resolve()), "child", work, *(["--tiny"] if tiny else []), *units]


def check(lines: Lines, wanted: Sequence[Kernel], command: Callable[[Sequence[str]], list[str]]) -> bool:
    """A line for every kernel; whether all passed. Kernels of one op and launcher share a process."""
    groups: dict[tuple[str, str], list[str]] = {}
    for kernel in wanted:
        groups.setdefault((kernel.launcher, kernel.op), []).append(str(kernel))

    def run(group: list[str]) -> list[bool]:
        began, found = time.perf_counter(), []
        for name, result in run_isolated(group, command, unit_seconds=UNIT_SECONDS):
            verdict = self_check.as_verdict(result)
            line = {"what": "check"} | about_kernel(kernel_named(name)) | asdict(verdict)
            lines.add(line | {"seconds": time.perf_counter() - began})
            print(f"{name:44} {verdict_of(verdict.passed)} {verdict.reason}".rstrip(), flush=True)
            found.append(verdict.passed is True)
            began = time.perf_counter()
        return found

    with ThreadPoolExecutor(WORKERS) as pool:
        return all(all(found) for found in pool.map(run, groups.values()))


def verdict_of(passed: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "not compared"}[passed]


def all_units(tiny: bool) -> Iterator[str]:
    """What is measured, what matters most first: time may run out."""
    shapes = max(len(shapes) for _, shapes in (TINY if tiny else CASES).values())
    yield from units_of_ops(0, tiny)
    yield from units_of_selections(tiny)
    for place in range(1, shapes):
        yield from units_of_ops(place, tiny)
    if not tiny:
        yield from (SEPARATOR.join(("peer", name)) for name in device_peers.FOREIGN)


def units_of_ops(place: int, tiny: bool, others: bool = True) -> Iterator[str]:
    """Every op on the shape at this place of its list, on each of our kernels and, if asked for, by other ways."""
    cases = TINY if tiny else CASES
    for op in [op for op, (_, shapes) in cases.items() if place < len(shapes)]:
        dtype = cases[op][1][place][0]
        mine = list(kernel_backends(op, dtype))
        if op == "min_sqdist":
            hopper = Kernel("cuda", "min_sqdist_hopper", str(dtype).removeprefix("torch."))
            mine += [str(hopper)] * (hopper in kernels_here()) + [*VARIANTS] * (dtype == torch.float32)
        if op == "pool_min_sqdist":
            mine += [f"{name}, two calls" for name in mine]
        for contender in [*mine, *OTHERS] if others else mine:
            yield SEPARATOR.join(("op", op, str(place), contender))


def units_of_selections(tiny: bool) -> Iterator[str]:
    cases = device_selections.TINY if tiny else device_selections.CASES
    for name, case in cases.items():
        for contender in case[-1]:
            if contender in device_selections.LOOPS or backends.unusable(contender, DEVICE) is None:
                yield SEPARATOR.join(("kcenter", name, contender))


def measure(lines: Lines, units: Sequence[str], command: Callable, rates: dict[str, float], seconds: float) -> bool:
    """A line for every unit that there is time for; whether none of ours failed."""
    until, good, left = time.perf_counter() + seconds, True, set(units)
    for unit, result in run_isolated(units, command, unit_seconds=UNIT_SECONDS):
        left.discard(unit)
        if result is not None:  # None: there is no such contender on this shape
            line = described(unit) | finished(unit, result, rates)
            lines.add(line | rates)
            print(shown(line), flush=True)
            good &= line["passed"] is not False or not is_ours(line["backend"])
        if time.perf_counter() > until:
            break
    for unit in units:
        if unit in left:
            print(f"{unit}: left out, the {seconds:.0f} s are over", flush=True)
    return good


def described(unit: str) -> dict:
    """What a line says of a unit, whatever comes of it."""
    kind, name, *rest = unit.split(SEPARATOR)
    contender = rest[-1] if rest else name
    about = {"what": kind, "op": name if kind == "op" else kind, "backend": contender, "case": unit}
    if kind == "op" and contender.split(" ")[0] in kernels.LAUNCHERS and "," not in contender:
        about |= about_kernel(kernel_named(contender))
    return about


def finished(unit: str, result: Any, rates: dict[str, float]) -> dict:
    """A unit's figures, or why there are none."""
    if isinstance(result, Failure):
        return {"passed": False if result.started else None, "reason": result.reason}
    if "p50" not in result or "bytes" not in result:
        return result
    limit = roofline(result, rates)
    return result | {"roofline": limit, "of_roofline": limit / result["p50"]}


def shown(line: dict) -> str:
    """A line for people."""
    seconds = f"{line['p50'] * 1e3:10.3f} ms" if "p50" in line else ""
    of = f"{line['of_roofline']:6.1%} of the roofline" if "of_roofline" in line else ""
    return f"{line['case']:64} {seconds:14} {of:22} {verdict_of(line['passed'])} {line.get('reason', '')}".rstrip()


# In the child.


HELD: dict[tuple, Any] = {}  # the case in memory, kept for the contenders that come one after the other


def held(make: Callable, *given: Any) -> Any:
    """make(*given), or what it gave for the unit before; another case's memory is let go of first."""
    if (make, *given) not in HELD:
        HELD.clear()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        HELD[make, *given] = make(*given)
    return HELD[make, *given]


def op_case(op: str, place: int, tiny: bool) -> Case:
    make, shapes = (TINY if tiny else CASES)[op]
    return make(*shapes[place])


def selection_case(name: str, tiny: bool) -> device_selections.Selection:
    return device_selections.Selection(*(device_selections.TINY if tiny else device_selections.CASES)[name])


def do_unit(unit: str, tiny: bool) -> Iterator[dict | None]:
    """Measure a unit: its line's figures; None where a contender has no part in it."""
    kind, name, *rest = unit.split(SEPARATOR)
    try:
        if kind == "peer":
            yield device_peers.measure(name)
        elif kind == "kcenter":
            yield held(selection_case, name, tiny).measure(rest[0])
        else:
            yield timed(held(op_case, name, int(rest[0]), tiny), name, int(rest[0]), rest[1], tiny)
    except torch.OutOfMemoryError as error:  # says nothing about what ran out
        yield {"passed": None, "reason": str(error).splitlines()[0][:200]}
    synchronize()  # an error of what was queued belongs to this unit, not to the next one


def timed(case: Case, op: str, place: int, contender: str, tiny: bool) -> dict | None:
    """Check a contender, then time it."""
    if contender not in case.runs:
        return None
    dtype, *shape = (TINY if tiny else CASES)[op][1][place]
    run = case.runs[contender]
    about = {"shape": shape, "dtype": str(dtype).removeprefix("torch."), **case.work}
    passed = case.right(contender, run())
    return about | {"passed": passed} | (times(run) if passed else {"reason": "its result differs from the reference"})


def do_check(unit: str, tiny: bool) -> list[dict]:
    small = "first_use" if "_hopper" in unit and DEVICE == "cuda" else "small"  # a GPU takes it for many rows alone
    return [asdict(check_child.checked(unit, torch.device(DEVICE), small if tiny else "large"))]


# compute-sanitizer.


def sanitize(lines: Lines, tool: str, wanted: Sequence[Kernel], seconds: float) -> bool:
    """A line for every kernel's small problems under a tool of compute-sanitizer; whether all were clean.

    Our kernels alone are looked at: torch's, which compute what is expected, would take most of the time.
    """
    until, good = time.perf_counter() + seconds, True
    for kernel in wanted:
        left = until - time.perf_counter()
        if left < 5:
            print(f"{tool}: {kernel}: left out, the {seconds:.0f} s are over", flush=True)
            continue
        ours = "diverseevol" if kernel.launcher == "cuda" else f"_{kernel.op}_kernel"
        command = [
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            "--kernel-regex",
            f"kns={ours}",
            *(["--racecheck-detect-level", "error"] if tool == "racecheck" else []),
            *child("check", True, [str(kernel)]),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
            said = f"{done.stdout}\n{done.stderr}".strip().splitlines()
            passed = done.returncode == 0 and '"passed": true' in done.stdout  # clean, and what it computed is right
            reason = "" if passed else " / ".join(said[-3:])[:300]
        except (OSError, subprocess.TimeoutExpired) as error:
            passed, reason = None, str(error)[:200]
        lines.add({"what": tool, **about_kernel(kernel), "passed": passed, "reason": reason})
        print(f"{tool}: {kernel!s:44} {verdict_of(passed)} {reason}".rstrip(), flush=True)
        good &= passed is not False
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    common.add_argument("--tiny", action="store_true", help="small problems, without a GPU too")
    common.add_argument("--seconds", type=float, default=120.0, help="when no further unit is begun")
    commands.add_parser("check", parents=[common])
    commands.add_parser("measure", parents=[common]).add_argument("--brief", action="store_true")
    commands.add_parser("sanitize", parents=[common]).add_argument("tool", choices=("memcheck", "racecheck"))
    of_child = commands.add_parser("child", parents=[common])
    of_child.add_argument("work", choices=("check", "measure"))
    of_child.add_argument("units", nargs="+")
    args = parser.parse_args()
    if args.command == "child":
        work = do_check if args.work == "check" else do_unit
        serve(args.units, partial(work, tiny=args.tiny))
        return 0
    if DEVICE == "cpu" and not args.tiny:
        parser.exit(2, "no GPU answers here: this measures one\n")
    lines = Lines(args.output)
    print(json.dumps(lines.about), flush=True)
    for name in kernels.LAUNCHERS:
        if backends.unusable(name, DEVICE) is not None:
            print(f"{name}: left out, {backends.unusable(name, DEVICE)}", flush=True)
    if args.command == "check":
        return 0 if check(lines, kernels_here(), partial(child, "check", args.tiny)) else 1
    if args.command == "sanitize":
        return 0 if sanitize(lines, args.tool, kernels_here(), args.seconds) else 1
    rates = ceilings(256, 1 << 16) if args.tiny else ceilings()
    print({name: f"{rate:.4g}" for name, rate in rates.items()}, flush=True)
    units = units_of_ops(0, args.tiny, others=False) if args.brief else all_units(args.tiny)
    return 0 if measure(lines, list(units), partial(child, "measure", args.tiny), rates, args.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
