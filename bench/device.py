"""What a GPU does with the ops: python bench/device.py measure [--output FOLDER] [--unproven] | small

measure: ceilings of the card, every op on every backend beside what others take, whole selections; checked first, then
timed, within about 200 seconds. Appends JSON lines to FOLDER/<gpu>.jsonl, which decide what a GPU's tensors take
(diverseevol_fast/ops/measured.py), and writes the table and picture of this run beside it. --unproven: tests failed, so
that no line of ours is to decide anything.
small: every Triton and CUDA kernel once on small shapes, for compute-sanitizer; Triton's without a GPU too, with
TRITON_INTERPRET=1.
"""

import argparse
import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import device_peers
import device_table
import torch
import triton
from device_cases import CASES, OURS, SMALL, Case, ours
from device_timing import DEVICE, ceilings, once, roofline, times

import diverseevol_fast
from diverseevol_fast import kcenter
from diverseevol_fast.ops import backends, measured

ROOT = Path(__file__).resolve().parents[1]
DIM, POOL, PICKS = 4096, 1000, 100  # of the scale table
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
FOLLOWED = 100_000  # rows up to which the CPU makes the same selection
PEERS_SIZE = 52_002  # where the reference formula's matrix still fits
HOST_SIZE = 1_000_000
SECONDS = {"ops": 85, "selections": 65, "other projects": 25}
ONE_PROJECT = 20  # seconds, compiling included
Unit = Callable[[], Iterator[dict]]  # yields lines


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def op_units(rates: dict[str, float]) -> Iterator[tuple[str, Unit]]:
    """Every op on every shape, the first shapes of all ops first: time may run out."""
    places = [(place, op) for op, (_, given) in CASES.items() for place in range(len(given))]
    for place, op in sorted(places, key=lambda item: item[0]):
        case, given = CASES[op]
        dtype, *shape = given[place]
        base = {"op": op, "shape": shape, "dtype": named(dtype)}
        yield f"{op} {shape} {named(dtype)}", partial(contended, case, given[place], base, rates)


def contended(make: Callable[..., Case], given: tuple, base: dict, rates: dict[str, float]) -> Iterator[dict]:
    """The reference and all contenders on one shape."""
    case = make(*given)
    base = base | case.work | {"roofline": roofline(case.work, rates), "reference_seconds": None}
    if case.covers_all:
        base["reference_seconds"] = once(case.reference)[0]
        yield base | {"backend": "reference", "passed": True, "p50": base["reference_seconds"]}
    for name, run in case.runs.items():
        line = base | {"backend": name} | attempt(partial(checked, name, run, case.right))
        yield line | ({"of_roofline": line["roofline"] / line["p50"]} if "p50" in line else {})


def checked(name: str, run: Callable, right: Callable) -> dict:
    """A contender's verdict and times; one that is not right is not timed."""
    passed = right(name, run())
    return {"passed": passed} | (times(run) if passed else {})


def attempt(measurement: Callable[[], dict]) -> dict:
    """What a measurement gives, or why it failed."""
    try:
        found = measurement()
    except torch.OutOfMemoryError as error:  # says nothing about what ran out
        found = {"passed": None, "skipped": f"{error}".splitlines()[0][:200]}
    except (RuntimeError, ValueError, triton.TritonError) as error:
        found = {"passed": False, "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    torch.cuda.synchronize()  # raises after an illegal access: what came next would be blamed for it
    return found


def normal_rows(n: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.empty(n, DIM, dtype=dtype, device=DEVICE)
    for part in x.split(100_000):
        part.normal_()
    return x


def selection_units(rates: dict[str, float]) -> Iterator[tuple[str, Unit]]:
    """Whole selections: the peers' size in float32, then the scale table in bfloat16."""
    free = torch.cuda.mem_get_info()[0]
    yield f"kcenter {PEERS_SIZE} float32", partial(selections, PEERS_SIZE, 100, torch.float32, rates)
    for n in SIZES:
        if 2 * n * DIM * 1.3 < free:
            yield f"kcenter {n} bfloat16", partial(selections, n, POOL, torch.bfloat16, rates)
        else:
            print(f"kcenter {n} bfloat16: skipped, {free / 2**30:.0f} GiB are free")


def selections(n: int, pool: int, dtype: torch.dtype, rates: dict[str, float]) -> Iterator[dict]:
    """One selection on each of our backends, from host memory too at one size, and by the loops of others."""
    x, centers = normal_rows(n, dtype), list(range(pool))
    work = {"bytes": x.nbytes, "flops": 2 * n * DIM * pool}
    base = {"shape": [n, DIM, pool, PICKS], "dtype": named(dtype), "roofline": roofline(work, rates)} | work
    wanted = kcenter(x.cpu(), PICKS, centers).indices.tolist() if n <= FOLLOWED else None
    for backend in ours(str):
        line = attempt(partial(selected, x, centers, wanted, backend=backend))
        picks = line.pop("picks", None)
        wanted = wanted or picks  # where the CPU is too slow, the backends are held against one another
        yield base | {"op": "kcenter", "backend": backend} | line
    if n == HOST_SIZE:
        host = x.cpu()
        for backend in ours(str):
            given = {"backend": backend, "device": DEVICE, "max_gpu_memory": "2GB"}
            line = attempt(partial(selected, host, centers, wanted, **given))
            line.pop("picks", None)
            yield base | {"op": "kcenter, host rows", "backend": backend} | line
    loops = {"matrix-vector loop": device_peers.matrix_vector_loop} if n <= HOST_SIZE else {}
    if n == PEERS_SIZE:
        loops["reference formula (N x N)"] = device_peers.reference_formula
    for name, loop in loops.items():
        yield base | {"op": "kcenter", "backend": name} | attempt(partial(looped, loop, x, centers, wanted))


def selected(x: torch.Tensor, centers: list[int], wanted: list[int] | None, **given) -> dict:
    """Our selection: its picks, whether they are those wanted, seconds, passes, and the memory it takes beyond x."""
    picks = kcenter(x, PICKS, centers, **given).indices.tolist()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = [kcenter(x, PICKS, centers, **given) for _ in range(3)]
    return {
        "picks": picks, "passed": None if wanted is None else picks == wanted,
        "p50": statistics.median(result.seconds for result in results), "passes": results[0].passes,
        "extra_bytes": torch.cuda.max_memory_allocated() - before,
    }  # fmt: skip


def looped(loop: Callable, x: torch.Tensor, centers: list[int], wanted: list[int] | None) -> dict:
    """Another project's selection, once."""
    seconds, picks = once(lambda: loop(x, centers, PICKS))
    return {"passed": None if wanted is None else picks == wanted, "p50": seconds}


def foreign_units(rates: dict[str, float]) -> Iterator[tuple[str, Unit]]:
    """Other projects' kernels, where they are installed."""

    def unit(name: str) -> Iterator[dict]:
        line = device_peers.foreign(name, ONE_PROJECT)
        yield line | {"roofline": roofline(line, rates)}

    for name in device_peers.FOREIGN:
        yield name, partial(unit, name)


def run_in_time(section: str, units: Iterator[tuple[str, Unit]]) -> Iterator[dict]:
    """The lines of a section's units until its time is over; what is left out is printed."""
    until = time.perf_counter() + SECONDS[section]
    for label, unit in units:
        if time.perf_counter() > until:
            print(f"{label}: skipped, the {SECONDS[section]} s of '{section}' are over", flush=True)
            continue
        try:
            yield from unit()
        except torch.cuda.OutOfMemoryError as error:
            print(f"{label}: skipped, {str(error).splitlines()[0]}", flush=True)
        torch.cuda.empty_cache()


def run_small() -> bool:
    """Every Triton and CUDA kernel once; whether all results are right."""
    passed = True
    for op, (make, shapes) in SMALL.items():
        for given in shapes:
            case = make(*given)
            for name in ours(str):
                right = case.right(name, case.runs[name]())
                passed &= right
                if not right:
                    print(f"{op} {given} {name}: FAILED")
    return passed


def machine() -> dict:
    """What the lines were measured on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    return {
        "device": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability(),
        "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
        "diverseevol_fast": diverseevol_fast.__version__, "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"), "run": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }  # fmt: skip


def shown(line: dict) -> str:
    """A line for people."""
    seconds = f"{line['p50'] * 1e3:10.3f} ms {line['p50'] / line['roofline']:7.2f} x roofline" if "p50" in line else ""
    reason = line.get("skipped") or line.get("error") or ""
    shape = " ".join(str(size) for size in line["shape"])
    what = f"{line['op']:18} {shape:24} {line['dtype']:8} {line['backend']:20}"
    return f"{what} {seconds:32} {device_table.verdict(line)} {reason}".rstrip()


def measure(folder: Path, proven: bool) -> bool:
    """Append a line for everything that is measured; whether all that is ours was right."""
    for name in OURS:
        if backends.unusable(name, DEVICE) is not None:
            print(f"{name}: skipped, {backends.unusable(name, DEVICE)}")
    rates, about = ceilings(), machine()
    print(json.dumps(about | {name: f"{rate:.4g}" for name, rate in rates.items()}), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', about['device'].lower()).strip('-')}.jsonl"
    digests = {name: {"digest": measured.digest(name)} for name in OURS}
    sections = {"ops": op_units, "selections": selection_units, "other projects": foreign_units}
    passed = True
    with open(path, "a", encoding="utf-8") as file:
        for section, units in sections.items():
            for line in run_in_time(section, units(rates)):
                if not proven and line["backend"] in OURS and line["passed"]:
                    line["passed"] = None
                print(shown(line), flush=True)
                file.write(json.dumps(line | digests.get(line["backend"], {}) | rates | about) + "\n")
                file.flush()
                passed &= line["passed"] is not False or line["backend"] not in OURS
    print(device_table.render(path))
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "small"))
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--unproven", action="store_true")
    args = parser.parse_args()
    if args.what == "small":
        return 0 if run_small() else 1
    if DEVICE == "cpu":
        parser.exit(2, "no GPU: this measures one\n")
    return 0 if measure(args.output, not args.unproven) else 1


if __name__ == "__main__":
    raise SystemExit(main())
