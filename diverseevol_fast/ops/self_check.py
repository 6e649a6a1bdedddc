"""The self-check of the GPU kernels: once on each GPU, in child processes, with verdicts in the user's cache folder.

The automatic choice of a backend takes a kernel only where its self-check has passed. A verdict holds for this GPU and
driver, these versions of torch and Triton, and these very kernels; where one differs, all kernels are checked anew.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
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

from .._common.files import read_json, user_cache, write_json
from . import kernels
from .isolated import Failure, run_isolated
from .kernels import Kernel

log = logging.getLogger("diverseevol_fast")

PACKAGE = Path(__file__).resolve().parents[1]
KERNEL_SECONDS = 60.0  # a check that sends nothing for so long hangs; Triton compiles a kernel within a few
CHECK_SECONDS = 240.0  # no further kernel is checked after that: on a GPU where all of them hang
LOCK_SECONDS = 300.0  # the longest wait for another process that checks the same GPU


@dataclass(frozen=True)
class Verdict:
    """The verdict of a kernel's self-check."""

    passed: bool | None  # None: it could not be checked; that says nothing about the kernel, and is not saved
    reason: str = ""  # why it did not pass


@dataclass(frozen=True)
class Gpu:
    """A GPU, and everything else that a verdict depends on."""

    name: str  # the name of a MIG slice includes its profile
    capability: tuple[int, int]
    multiprocessors: int
    driver: str
    torch: str
    triton: str
    kernels: str  # a digest of the compiled kernels and of Triton's sources


def describe(index: int) -> Gpu:
    """The GPU with this index."""
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
        driver=driver_version(),
        torch=torch.__version__,
        triton=version_of("triton"),
        kernels=kernels_digest(),
    )


@cache
def driver_version() -> str:
    """The version of NVIDIA's driver; "unknown" where neither the kernel module nor nvidia-smi tells it."""
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
    """A digest of the compiled extension module, of Triton's kernels, and of check_problems.py."""
    total = hashlib.sha256()
    problems = Path(__file__).with_name("check_problems.py")
    (triton_ops,) = importlib.import_module("diverseevol_fast.triton_ops").__path__
    paths = [*PACKAGE.glob("_native*"), *Path(triton_ops).glob("*.py"), problems]
    for path in sorted(path for path in paths if path.suffix in (".py", ".so", ".pyd")):
        total.update(f"{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def version_of(package: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cache_folder() -> Path:
    """The folder where verdicts are saved: diverseevol_fast in the user's cache folder."""
    return user_cache("gpu_checks")


@cache
def verdicts(index: int, launchers: tuple[str, ...]) -> dict[Kernel, Verdict]:
    """The verdicts on the kernels of the GPU with this index, saved or made now; once in each process.

    launchers: those of kernels.LAUNCHERS that can run here.
    """
    gpu = describe(index)
    wanted = _kernels_here(gpu, launchers)
    path = _file_of(gpu)
    with _locked(path):
        known = _saved(path, gpu)
        missing = [kernel for kernel in wanted if kernel not in known]
        if missing:
            log.warning(
                "%s: checking %d GPU kernels before they are used, once on this machine", gpu.name, len(missing)
            )
            known |= run_checks(missing, index)
            _save(path, gpu, known)
    for kernel in missing:
        if not known[kernel].passed:
            state = "failed its self-check" if known[kernel].passed is False else "could not be checked"
            log.warning("%s: %s %s: %s", gpu.name, kernel, state, known[kernel].reason)
    return known


def check_anew(index: int, launchers: Sequence[str]) -> dict[Kernel, Verdict]:
    """Check all kernels of a GPU, whatever was saved, and save the verdicts."""
    gpu = describe(index)
    known = run_checks(_kernels_here(gpu, launchers), index)
    path = _file_of(gpu)
    with _locked(path):
        _save(path, gpu, known)
    return known


def _kernels_here(gpu: Gpu, launchers: Sequence[str]) -> list[Kernel]:
    return [kernel for kernel in kernels.all_kernels(gpu.capability) if kernel.launcher in launchers]


def _file_of(gpu: Gpu) -> Path:
    return cache_folder() / f"{hashlib.sha256(json.dumps(asdict(gpu)).encode()).hexdigest()[:16]}.json"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process checks a kind of GPU at a time; the others wait, and read its verdicts.

    Where no lock can be had (a folder that cannot be written, another process that does not end) the check is done
    without it: two processes that check at once only cost time.
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


def _saved(path: Path, gpu: Gpu) -> dict[Kernel, Verdict]:
    """The saved verdicts for this very GPU and these kernels; none where no file can be read."""
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


def _save(path: Path, gpu: Gpu, known: dict[Kernel, Verdict]) -> None:
    verdicts = {str(kernel): asdict(verdict) for kernel, verdict in known.items() if verdict.passed is not None}
    try:
        write_json(path, {"gpu": asdict(gpu), "checked": time.strftime("%Y-%m-%d"), "verdicts": verdicts})
    except OSError as error:
        log.warning("%s cannot be written (%s): each process checks the GPU kernels anew", path, error)


def run_checks(wanted: Sequence[Kernel], index: int) -> dict[Kernel, Verdict]:
    """Check kernels in child processes, one for each launcher, side by side."""
    groups = [[str(kernel) for kernel in wanted if kernel.launcher == launcher] for launcher in kernels.LAUNCHERS]
    with ThreadPoolExecutor(len(groups)) as pool:
        results = list(pool.map(lambda names: _run_group(names, index), groups))
    return {kernels.kernel_named(name): verdict for group in results for name, verdict in group}


def _run_group(names: Sequence[str], index: int) -> list[tuple[str, Verdict]]:
    results = run_isolated(
        names,
        lambda remaining: child_command(remaining, index),
        unit_seconds=KERNEL_SECONDS,
        environment=child_environment(),
    )
    done, until = [], time.perf_counter() + CHECK_SECONDS
    for name, result in results:
        done.append((name, as_verdict(result)))
        if time.perf_counter() > until:
            break
    late = Verdict(None, f"left out, the checks took more than {CHECK_SECONDS:.0f} s")
    return done + [(name, late) for name in names[len(done) :]]


def as_verdict(result: Any) -> Verdict:
    """A child's answer as a verdict."""
    if isinstance(result, Failure):
        return Verdict(False if result.started else None, result.reason)
    if not isinstance(result, dict):
        return Verdict(False, f"answered {result!r} where a verdict was expected")
    return Verdict(**result)


def child_command(names: Sequence[str], index: int) -> list[str]:
    """The command of a child that checks these kernels on the GPU with this index."""
    code = f"import json, sys; from {__package__}.check_child import main; main(*json.loads(sys.argv[1]))"
    return [sys.executable, "-c", code, json.dumps([index, torch.cuda.get_device_name(index), list(names)])]


def child_environment() -> dict[str, str]:
    """This process's environment, with its module path, and without Triton's interpreter."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {name: value for name, value in environment.items() if name != "TRITON_INTERPRET"}
