"""Compiles every CUDA source ahead of time, warnings as errors: python tests/compile_cuda.py [CAPABILITY ...]

Prints one JSON line for each kernel: kernel, source, compute capability, bytes spilled, registers. Needs no GPU.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
CAPABILITIES = ("80", "89", "90a", "100")
HOPPER_ONLY = "min_sqdist_hopper.cu"
WITH_HOST = "90a"  # host code is the same for all capabilities, so it is compiled for this one only


def compiled(source: Path, capability: str) -> list[dict]:
    """ptxas's report on each kernel of a source; for WITH_HOST, also compiles its host code.

    Raises:
        RuntimeError: nvcc failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                "nvcc",
                "-std=c++17",
                "-O3",
                "-DDEF_CUDA=1",
                "-DDEF_HOPPER=1",
                f"-I{SOURCES}",
                "-Werror=all-warnings",
                "-Xcompiler=-Wall",
                "-Xptxas=-v",
                f"-gencode=arch=compute_{capability},code=sm_{capability}",
                "-c" if capability == WITH_HOST else "-cubin",
                "-o",
                f"{folder}/out",
                str(source),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} for {capability}: {done.stdout}{done.stderr}")
    kernels = re.split(r"Compiling entry function '", done.stderr)[1:]
    return [
        {
            "kernel": report.split("'", 1)[0],
            "source": source.name,
            "sm": capability,
            "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
            "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        }
        for report in kernels
    ]


def main() -> None:
    for capability in sys.argv[1:] or CAPABILITIES:
        for source in sorted(SOURCES.glob("cuda/*.cu")):
            if source.name != HOPPER_ONLY or capability == "90a":
                for line in compiled(source, capability):
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
