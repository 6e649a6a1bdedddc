"""A small real data set that is on every machine: what the standard library's own documentation says of its functions.

A row asks what a function or class of a module does; the first paragraph of its docstring is the answer. Some modules
have eighty rows, others three. The rows depend on the Python version; a run's provenance tells two versions apart.
"""

import importlib
import inspect
import random
from collections.abc import Iterator
from types import ModuleType
from typing import Any

ROWS = 1000
SHORTEST, LONGEST = 25, 300  # characters of an answer
MODULES = """
abc argparse array ast asyncio base64 bisect bz2 calendar cmath codecs collections colorsys concurrent.futures
configparser contextlib copy csv dataclasses datetime decimal difflib dis email.message enum fileinput fnmatch
fractions functools gc gettext glob gzip hashlib heapq hmac html http.client http.server imaplib inspect io
ipaddress itertools json keyword linecache locale logging mailbox marshal math mimetypes multiprocessing numbers
operator os os.path pathlib pdb pickle pkgutil platform plistlib pprint profile queue random re reprlib sched
secrets select selectors shelve shlex shutil signal smtplib socket socketserver stat statistics string struct
subprocess sys tarfile tempfile textwrap threading time timeit token tokenize trace traceback types typing unittest
unittest.mock urllib.parse urllib.request uuid warnings wave weakref xml.dom.minidom xml.etree.ElementTree
xmlrpc.client zipfile zlib
"""


def python_docs_rows(count: int = ROWS, seed: int = 0) -> list[dict]:
    """Up to `count` alpaca rows, drawn with the seed, each with its module under "category"."""
    rows, seen = [], set()
    for module in MODULES.split():
        for name, answer in _documented(importlib.import_module(module)):
            if SHORTEST <= len(answer) <= LONGEST and answer not in seen:
                seen.add(answer)
                question = f"What does {name} in Python's standard library do?"
                rows.append({"instruction": question, "input": "", "output": answer, "category": module})
    random.Random(seed).shuffle(rows)
    return rows[:count]


def _documented(module: ModuleType) -> Iterator[tuple[str, str]]:
    """The module's public functions, classes and their methods, and the first paragraphs of their docstrings."""
    name = module.__name__
    for public in sorted(set(getattr(module, "__all__", dir(module)))):
        value = getattr(module, public, None)
        if public.startswith("_") or not callable(value) or not _is_of(value, name):
            continue
        yield f"{name}.{public}", _first_paragraph(value)
        if inspect.isclass(value):
            for method in sorted(vars(value)):
                if not method.startswith("_"):
                    yield f"{name}.{public}.{method}", _first_paragraph(getattr(value, method, None))


def _is_of(value: Any, module: str) -> bool:
    """Whether the value is defined in the module or in a part of it, in C or in Python."""
    defined_in = getattr(value, "__module__", None) or module
    return defined_in == f"_{module}" or defined_in == module or defined_in.startswith(f"{module}.")


def _first_paragraph(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").strip().split("\n\n")[0].split())
