"""The self-check of the GPU kernels: once on each GPU, in child processes, remembered in the user's cache folder.

A kernel is chosen by itself only where its self-check has passed. What a check found holds for this GPU and driver,
these versions of torch and Triton, and these very kernels; with any other, all is checked anew.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import filelock
import torch

from .._common.files import read_json, write_json
from . import kernels
from .isolated import Failure, run_isolated
from .kernels import Kernel

log = logging.getLogger("diverseevol_fast")

PACKAGE = Path(__file__).resolve().parents[1]
KERNEL_SECONDS = 60.0  # without a word for so long, a kernel's check hangs; Triton compiles it within a few
CHECK_SECONDS = 240.0  # when no further kernel is waited for: a GPU on which all of them hang
LOCK_SECONDS = 300.0  # for another process that checks the same GPU


@dataclass(frozen=True)
class Verdict:
    """What a kernel's self-check found."""

    passed: bool | None  # None: it could not be checked, which says nothing about the kernel and is not remembered
    reason: str = ""  # why it did not pass


@dataclass(frozen=True)
class Gpu:
    """A GPU, and all else that a verdict depends on."""

    name: str  # that of a MIG slice says which
    capability: tuple[int, int]
    multiprocessors: int
    driver: str
    torch: str
    triton: str
    kernels: str  # a digest of the compiled kernels and of Triton's sources


def describe(index: int) -> Gpu:
    """The GPU with this number."""
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        properties.name, (properties.major, properties.minor), properties.multi_processor_count, driver_version(),
        torch.__version__, version_of("triton"), kernels_digest(),
    )  # fmt: skip


@cache
def driver_version() -> str:
    """Of NVIDIA's driver; "unknown" where neither the kernel module nor nvidia-smi says it."""
    module = Path("/sys/module/nvidia/version")
    if module.is_file():
        return module.read_text(encoding="utf-8").strip()
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else "unknown"


@cache
def kernels_digest() -> str:
    """Of what runs on a GPU: the extension module as it was compiled, Triton's kernels, and the problems' own file."""
    total = hashlib.sha256()
    problems = Path(__file__).with_name("check_problems.py")
    triton_ops = importlib.util.find_spec("diverseevol_fast.triton_ops").submodule_search_locations[0]
    paths = [*PACKAGE.glob("_native*"), *Path(triton_ops).glob("*.py"), problems]
    for path in sorted(path for path in paths if path.suffix in (".py", ".so", ".pyd")):
        total.update(f"{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def version_of(package: str) -> str:
    """Of an installed package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cache_folder() -> Path:
    """Where verdicts are remembered: diverseevol_fast in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diverseevol_fast" / "gpu_checks"


@cache
def verdicts(index: int, launchers: tuple[str, ...]) -> dict[Kernel, Verdict]:
    """The verdicts on the kernels of this GPU, remembered or found now; once in each process.

    index: the GPU's number; launchers: those of kernels.LAUNCHERS that can run here.
    """
    gpu = describe(index)
    wanted = _kernels_here(gpu, launchers)
    path = _file_of(gpu)
    with _locked(path):
        known = _remembered(path, gpu)
        missing = [kernel for kernel in wanted if kernel not in known]
        if missing:
            log.warning(
                "%s: checking %d GPU kernels before they are used, once on this machine", gpu.name, len(missing)
            )
            known |= run_checks(missing, index)
            _remember(path, gpu, known)
    for kernel in missing:
        if not known[kernel].passed:
            state = "failed its self-check" if known[kernel].passed is False else "could not be checked"
            log.warning("%s: %s %s: %s", gpu.name, kernel, state, known[kernel].reason)
    return known


def check_anew(index: int, launchers: Sequence[str]) -> dict[Kernel, Verdict]:
    """Check all kernels of a GPU, whatever is remembered, and remember what is found now."""
    gpu = describe(index)
    found = run_checks(_kernels_here(gpu, launchers), index)
    path = _file_of(gpu)
    with _locked(path):
        _remember(path, gpu, found)
    return found


def _kernels_here(gpu: Gpu, launchers: Sequence[str]) -> list[Kernel]:
    return [kernel for kernel in kernels.all_kernels(gpu.capability) if kernel.launcher in launchers]


def _file_of(gpu: Gpu) -> Path:
    return cache_folder() / f"{hashlib.sha256(json.dumps(asdict(gpu)).encode()).hexdigest()[:16]}.json"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process checks a kind of GPU at a time; the others wait, and read what it found.

    Where no lock can be had (a folder that cannot be written, another process that does not end) the check is done
    without: two that check at once cost time alone.
    """
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except (OSError, filelock.Timeout) as error:
        log.debug("no lock on %s: %s", path, error)
    try:
        yield
    finally:
        lock.release()


def _remembered(path: Path, gpu: Gpu) -> dict[Kernel, Verdict]:
    """What was found for this very GPU and these kernels; nothing where no file can be read."""
    try:
        saved = read_json(path)
        if saved["gpu"] != json.loads(json.dumps(asdict(gpu))):
            return {}
        return {kernels.kernel_named(name): Verdict(**verdict) for name, verdict in saved["verdicts"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s): the GPU kernels are checked anew", path, error)
        return {}


def _remember(path: Path, gpu: Gpu, found: dict[Kernel, Verdict]) -> None:
    known = {str(kernel): asdict(verdict) for kernel, verdict in found.items() if verdict.passed is not None}
    try:
        write_json(path, {"gpu": asdict(gpu), "checked": time.strftime("%Y-%m-%d"), "verdicts": known})
    except OSError as error:
        log.warning("%s cannot be written (%s): each process checks the GPU kernels anew", path, error)


def run_checks(wanted: Sequence[Kernel], index: int) -> dict[Kernel, Verdict]:
    """Check kernels in child processes, one for each launcher, side by side."""
    groups = [[str(kernel) for kernel in wanted if kernel.launcher == launcher] for launcher in kernels.LAUNCHERS]
    with ThreadPoolExecutor(len(groups)) as pool:
        found = list(pool.map(lambda names: _run_group(names, index), groups))
    return {kernels.kernel_named(name): verdict for group in found for name, verdict in group}


def _run_group(names: Sequence[str], index: int) -> list[tuple[str, Verdict]]:
    results = run_isolated(
        names, lambda left: child_command(left, index), unit_seconds=KERNEL_SECONDS, environment=child_environment()
    )
    found, until = [], time.perf_counter() + CHECK_SECONDS
    for name, result in results:
        found.append((name, as_verdict(result)))
        if time.perf_counter() > until:
            break
    late = Verdict(None, f"left out, the checks took more than {CHECK_SECONDS:.0f} s")
    return found + [(name, late) for name in names[len(found) :]]


def as_verdict(result: Any) -> Verdict:
    """A child's answer as a verdict."""
    if isinstance(result, Failure):
        return Verdict(False if result.started else None, result.reason)
    if not isinstance(result, dict):
        return Verdict(False, f"answered {result!r} where a verdict was expected")
    return Verdict(**result)


def child_command(names: Sequence[str], index: int) -> list[str]:
    """The command of a child that checks these kernels on the GPU with this number."""
    code = f"import json, sys; from {__package__}.check_child import main; main(*json.loads(sys.argv[1]))"
    return [sys.executable, "-c", code, json.dumps([index, torch.cuda.get_device_name(index), list(names)])]


def child_environment() -> dict[str, str]:
    """This process's, with modules found where it finds them, and Triton compiling for the GPU."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"}
