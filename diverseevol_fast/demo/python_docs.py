"""A small real data set that is on every machine: what the standard library's own documentation says of its functions.

A row asks what a function or class of a module does; the first paragraph of its docstring is the answer. Some packages
have a hundred rows, others one. Sources are read, nothing is imported: other packages change modules that are loaded.
The rows depend on the Python version; a run's provenance tells two versions apart.
"""

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROWS = 1000
SHORTEST, LONGEST = 25, 300  # characters of an answer
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "encodings"}
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_docs_rows(count: int = ROWS, seed: int = 0) -> list[dict]:
    """Up to `count` alpaca rows, drawn with the seed, each with its package under "category"; none without sources."""
    rows, seen = [], set()
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if LEFT_OUT & set(parts) or any(part.startswith("_") for part in parts):
            continue
        for name, answer in _documented(ast.parse(path.read_bytes()).body, ".".join(parts)):
            if SHORTEST <= len(answer) <= LONGEST and answer not in seen:
                seen.add(answer)
                question = f"What does {name} in Python's standard library do?"
                rows.append({"instruction": question, "input": "", "output": answer, "category": parts[0]})
    random.Random(seed).shuffle(rows)
    return rows[:count]


def _documented(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
    """Public functions and classes, and classes' methods, with the first paragraphs of their docstrings."""
    for node in body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            yield name, " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if isinstance(node, ast.ClassDef):
                yield from _documented(node.body, name)
