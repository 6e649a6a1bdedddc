"""HTML by the templates in templates/. They escape all text but Markup: charts, and parts that are rendered already."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

NOTHING = "-"  # in a table, where there is no figure
FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")  # in HTML


class Chart(NamedTuple):
    """A chart of the page and what is written below it."""

    svg: Markup
    caption: str


class Table(NamedTuple):
    """A table of the page. The first cell of a row is its heading; cells are Markup where they hold elements."""

    caption: str
    head: list[str]
    rows: list[list[object]]


Draw = Callable[[str, Figure, str, str], Chart]  # name of the chart, the chart, the same in words, caption


def render(template: str, **values: Any) -> Markup:
    """A template of templates/, by its name without .html.j2, with these values."""
    return Markup(without_forbidden(TEMPLATES.get_template(f"{template}.html.j2").render(values)))


def html(text: str) -> Markup:
    """The text, escaped."""
    return escape(without_forbidden(text))


def without_forbidden(text: str) -> str:
    """The text with U+FFFD for each character that HTML must not hold."""
    return FORBIDDEN.sub("\ufffd", text)


def cut(text: str, longest: int) -> str:
    """At most `longest` characters of the text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters["cut"] = cut
