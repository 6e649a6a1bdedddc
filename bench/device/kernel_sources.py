"""The sources that a GPU kernel is made from, and their digest: whether a line of bench/results is of today's kernel.

Standard library alone, so that CI can ask without torch.
"""

import ast
import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
CUDA_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def sources(launcher: str, name: str) -> list[Path]:
    """A kernel's file and all files of ours that it includes or imports, directly or not."""
    first = ROOT / (f"csrc/cuda/{name}.cu" if launcher == "cuda" else f"kernels/triton_ops/{name}.py")
    found, left = [], [first]
    while left:
        path = left.pop()
        if path not in found:
            found.append(path)
            left += _used_by(path)
    return sorted(found)


def _used_by(path: Path) -> list[Path]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        modules = [node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
        return [path.with_name(f"{module}.py") for module in modules if module]
    return [ROOT / "csrc" / include for include in CUDA_INCLUDE.findall(text)]


def digest(launcher: str, name: str) -> str:
    """Of what a kernel's sources say; a comment changes nothing."""
    total = hashlib.sha256()
    for path in sources(launcher, name):
        text = path.read_text(encoding="utf-8")
        said = ast.dump(ast.parse(text)) if path.suffix == ".py" else " ".join(CUDA_COMMENT.sub(" ", text).split())
        total.update(f"{path.relative_to(ROOT).as_posix()}\n{said}\n".encode())
    return total.hexdigest()[:16]
