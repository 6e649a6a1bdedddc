"""The order in which a GPU's kernels are tried, from what was measured.

python bench/device/preference.py write | status

write: rewrites diverseevol_fast/ops/preference.json from bench/results/*.jsonl. For an op, a dtype and a compute
capability it is the order of the geometric mean time over the shapes that all backends have passing lines of; a backend
with a line that failed is left to the end.
status: says on how many lines the table rests, and which kernels' sources have changed since. Standard library alone.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import kernel_sources

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "diverseevol_fast" / "ops" / "preference.json"
RESULTS = ROOT / "bench" / "results"
OF_KERNELS = ("op", "check", "memcheck", "racecheck")  # lines that say something of one kernel
BACKENDS = {"min_sqdist_hopper": "cuda", "min_sqdist": "cuda_general"}  # of CUDA's kernels; of other ops "cuda"


def read_lines(path: Path) -> Iterator[dict]:
    """The lines of a file; one that was cut short, as by a machine that went away, is named and left aside."""
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            print(f"{path.name}:{number}: not a whole line, left aside", file=sys.stderr)
            continue
        if isinstance(line, dict):
            yield line


def kernel_lines(folder: Path = RESULTS) -> list[dict]:
    """The measurements and checks of GPU kernels, with the name of the file that they are in."""
    return [
        line | {"file": path.name}
        for path in sorted(folder.glob("*.jsonl"))
        for line in read_lines(path)
        if line.get("what") in OF_KERNELS and line.get("kernel") and line.get("capability")
    ]


def backend_of(kernel: str) -> str:
    """The backend that launches a kernel, and of several the one that launches no other."""
    launcher, name, dtype = kernel.split(" ")
    if launcher == "cuda" and (name != "min_sqdist" or dtype == "float32"):
        return BACKENDS["min_sqdist_hopper"]
    return BACKENDS[name] if launcher == "cuda" else launcher


def order_of(lines: list[dict]) -> list[str]:
    """Backends by mean time, from the lines of one op, dtype and compute capability."""
    times: dict[str, dict[tuple, float]] = {}
    failed = {backend_of(line["kernel"]) for line in lines if line["passed"] is False}
    for line in lines:
        if line["passed"] and line.get("p50"):
            times.setdefault(backend_of(line["kernel"]), {})[line["device"], *line["shape"]] = line["p50"]
    if "cuda_general" in failed:  # "cuda" takes it where Hopper's does not suit
        failed.add("cuda")
    for backend in failed:
        times.pop(backend, None)
    general = times.get("cuda_general", {})
    if "cuda" in times:
        times["cuda"] = general | times["cuda"]
    elif general and "cuda" not in failed:  # there is no Hopper kernel: the two are one
        times["cuda"] = times.pop("cuda_general")
    shared = set.intersection(*map(set, times.values())) if times else set()
    if not shared:
        return []
    means = {backend: statistics.geometric_mean(mine[case] for case in shared) for backend, mine in times.items()}
    return sorted(means, key=lambda backend: (means[backend], backend))


def make_table(lines: list[dict]) -> dict:
    """The table's measured part."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for line in lines:
        capability = ".".join(map(str, line["capability"]))
        groups.setdefault((f"{line['op']} {line['dtype']}", capability), []).append(line)
    table: dict[str, dict] = {}
    for (name, capability), group in sorted(groups.items()):
        order = order_of(group)
        if order:
            digests = {line["kernel"]: line["digest"] for line in group}
            files = sorted({line["file"] for line in group})
            table.setdefault(name, {})[capability] = {"order": order, "digests": digests, "files": files}
    return table


def write() -> None:
    """Rewrite the measured part of the table."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    table["measured"] = make_table(kernel_lines())
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def status() -> list[str]:
    """Sentences about what the table rests on."""
    measured = json.loads(TABLE.read_text(encoding="utf-8"))["measured"]
    entries = [entry for of_op in measured.values() for entry in of_op.values()]
    if not entries:
        return ["Order of preference: no GPU has been measured; it is the default for all."]
    older = sorted(
        {
            kernel
            for entry in entries
            for kernel, digest in entry["digests"].items()
            if kernel_sources.digest(*kernel.split(" ")[:2]) != digest
        }
    )
    files = sorted({name for entry in entries for name in entry["files"]})
    sentences = [f"Order of preference: {len(entries)} entries, from {', '.join(files)}."]
    if older:
        sentences.append(f"Measured before their sources changed: {', '.join(older)}.")
    return sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "status"))
    if parser.parse_args().what == "write":
        write()
    print("\n".join(status()))


if __name__ == "__main__":
    main()
