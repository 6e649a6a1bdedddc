"""The documentation: it builds, shows every public name, command and key, and its commands and code are such."""

import inspect
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import hooks
import pytest

import diverseevol_fast
from diverseevol_fast.cli.parser import COMMANDS, build_parser
from diverseevol_fast.runs.config import Config
from diverseevol_fast.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [name for name in diverseevol_fast.__all__ if name != "__version__"]
SECTIONS = ("Args:", "Returns:", "Raises:")


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's code in these languages."""
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [code for language, code in fences if language in languages]


def commands(page: Path) -> list[str]:
    """The `diverseevol` commands that the page shows, without comments."""
    code = "\n".join(blocks(page, "bash", "console")).replace("\\\n", " ")
    lines = [re.sub(r"\s#.*", "", line.removeprefix("$ ")).strip() for line in code.splitlines()]
    return [line for line in lines if line.startswith("diverseevol ") and "--help" not in line]


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands(page)}))
def test_commands_are_ones_that_the_parser_takes(command):
    arguments, rest = build_parser().parse_known_args(shlex.split(command)[1:])
    keys = {word[2:].split(".")[0] for word in rest if word.startswith("--")}
    assert arguments.command == "run" or not rest
    assert keys <= {field.name for field in fields(Config)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_is_python(page):
    for code in blocks(page, "python"):
        compile(inspect.cleandoc("\n" + code), str(page), "exec")


def test_the_front_page_is_short_and_its_links_lead_somewhere():
    text = PAGES[0].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tables_have_every_command_key_and_strategy_and_stand_in_a_page():
    assert [name for name in COMMANDS if f"## diverseevol {name}" not in hooks.commands_text()] == []
    assert [field.name for field in fields(Config) if f"| `{field.name}` |" not in hooks.config_text()] == []
    assert [name for name in STRATEGIES if f"| `{name}` | " not in hooks.strategies_text()] == []
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [mark for mark in hooks.MADE if mark not in text] == []


def test_the_api_page_shows_every_public_name():
    assert hooks.undocumented((ROOT / "docs" / hooks.API_PAGE).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", NAMES)
def test_public_names_say_what_they_take_return_and_raise(name):
    public = getattr(diverseevol_fast, name)
    assert public.__doc__
    if inspect.isclass(public):
        methods = [method for key, method in vars(public).items() if inspect.isfunction(method) and key[0] != "_"]
        assert all(method.__doc__ for method in methods)
        if not (is_dataclass(public) or issubclass(public, Exception)):
            assert all(section in public.__init__.__doc__ for section in ("Args:", "Raises:"))
    elif inspect.signature(public).parameters:
        assert [section for section in SECTIONS if section not in public.__doc__] == []


def test_it_builds_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert fetched == [], page
