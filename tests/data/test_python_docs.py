"""The built-in data set of docstrings."""

import subprocess
import sys
from collections import Counter

from diverseevol_fast import load_data
from diverseevol_fast.demo import python_docs


def test_its_rows_are_real_unlike_and_always_the_same():
    data, empty = load_data("builtin:python-docs")
    assert len(data.rows) == python_docs.ROWS
    assert not empty
    assert data.rows == python_docs.python_docs_rows()
    assert len({row["output"] for row in data.rows}) == len(data.rows)
    sizes = Counter(row["category"] for row in data.rows)
    assert len(sizes) > 90
    assert min(sizes.values()) <= 3 < 50 < max(sizes.values())


def test_an_answer_is_the_first_paragraph_of_the_docstring():
    rows = python_docs.python_docs_rows(count=10_000)
    (row,) = [row for row in rows if row["instruction"].startswith("What does shlex.quote ")]
    assert row["output"] == "Return a shell-escaped version of the string *s*."
    assert row["category"] == "shlex"
    assert python_docs.python_docs_rows(count=5) == rows[:5]


def test_every_process_makes_the_same_rows():
    command = "from diverseevol_fast import load_data; print(load_data('builtin:python-docs')[0].sha256())"
    found = [
        subprocess.run([sys.executable, "-c", command], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in "12"
    ]
    assert found[0].stdout == found[1].stdout


def test_without_docstrings_it_says_so():
    command = """
from diverseevol_fast import InputError, load_data
try:
    load_data("builtin:python-docs")
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-OO", "-c", command], capture_output=True, text=True, check=True)
    assert "without docstrings; start it without -OO" in done.stdout
