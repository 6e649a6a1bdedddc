"""What a line of bench/results/<gpu>.jsonl says besides its figures, and how lines are appended: each at once."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import kernel_sources
import torch

import diverseevol_fast
from diverseevol_fast.ops import self_check
from diverseevol_fast.ops.kernels import Kernel

ROOT = Path(__file__).resolve().parents[2]


def machine() -> dict:
    """What the lines are measured on; without a GPU, the name says so."""
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "no GPU",
        "capability": list(torch.cuda.get_device_capability()) if on_gpu else None,
        "driver": self_check.driver_version() if on_gpu else None,
        "torch": torch.__version__,
        "triton": self_check.version_of("triton"),
        "cuda": torch.version.cuda,
        "diverseevol_fast": diverseevol_fast.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "run": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def commit() -> str:
    """$DEF_COMMIT, for a checkout without its history or a machine without git; else what git says; else ""."""
    named = os.environ.get("DEF_COMMIT")
    if named:
        return named
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def about_kernel(kernel: Kernel) -> dict:
    """A kernel's own fields."""
    return {
        "kernel": str(kernel),
        "op": kernel.op,
        "dtype": kernel.dtype,
        "digest": kernel_sources.digest(kernel.launcher, kernel.name),
    }


class Lines:
    """The file of one machine; a line is there as soon as it is added, whatever happens next."""

    def __init__(self, folder: Path):
        self.about = machine()
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{re.sub(r'[^a-z0-9]+', '-', self.about['device'].lower()).strip('-')}.jsonl"

    def add(self, line: dict) -> None:
        """Append a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | self.about) + "\n")
            file.flush()
            os.fsync(file.fileno())
