"""The built-in data set of docstrings."""

import subprocess
import sys
from collections import Counter

import pytest

from diverseevol_fast import InputError, load_data
from diverseevol_fast.demo import python_docs


def test_its_rows_are_real_unlike_and_always_the_same():
    data, empty = load_data("builtin:python-docs")
    assert len(data.rows) == python_docs.ROWS
    assert not empty
    assert data.rows == python_docs.python_docs_rows()
    assert len({row["output"] for row in data.rows}) == len(data.rows)
    sizes = Counter(row["category"] for row in data.rows)
    assert len(sizes) > 90
    assert min(sizes.values()) == 1 < 50 < max(sizes.values())


def test_an_answer_is_the_first_paragraph_of_the_docstring():
    rows = python_docs.python_docs_rows(count=10_000)
    by_name = {row["instruction"].split()[2]: row for row in rows}
    assert by_name["shlex.quote"]["output"] == "Return a shell-escaped version of the string *s*."
    assert by_name["shlex.quote"]["category"] == "shlex"
    assert by_name["unittest.case.TestCase.assertIn"]["category"] == "unittest"
    assert "test" not in {row["category"] for row in rows}
    assert python_docs.python_docs_rows(count=5) == rows[:5]


@pytest.mark.slow
def test_every_process_makes_the_same_rows_whatever_it_has_loaded():
    """Other packages change the standard library's modules: matplotlib, torch and sklearn some docstrings."""
    command = "from diverseevol_fast import load_data; print(load_data('builtin:python-docs')[0].sha256())"
    found = [
        subprocess.run([sys.executable, *flags, "-c", first + command], capture_output=True, check=True).stdout
        for flags, first in (([], ""), (["-OO"], "import matplotlib, torch, sklearn, transformers; "))
    ]
    assert found[0] == found[1]


def test_without_sources_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="no sources of its standard library"):
        load_data("builtin:python-docs")
