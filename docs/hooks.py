"""What mkdocs adds to the pages while it builds them: tables from the code, pictures of bench/results, a drawing.

The tables cannot differ from the code, since they are made from the argparse parser, the table of settings and the
strategies' docstrings.
"""

import argparse
import html
import inspect
import logging
import random
import re
import sys
from dataclasses import MISSING
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed where mkdocs is; none of this imports torch

import diverseevol_fast  # noqa: E402
from diverseevol_fast.cli.parser import build_parser  # noqa: E402
from diverseevol_fast.runs.settings import COMMON, DEFAULTS, FURTHER  # noqa: E402
from diverseevol_fast.strategies import STRATEGIES  # noqa: E402

log = logging.getLogger("mkdocs.hooks")

API_PAGE = "reference/api.md"


def on_files(files, config):
    """Add the pictures that no folder below docs/ holds."""
    from mkdocs.structure.files import File

    for picture in sorted((ROOT / "bench" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    files.append(File.generated(config, "results/kcenter.svg", content=drawing()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Put the tables in place of their marks, and make links to bench/results point to results/."""
    if page.file.src_uri == API_PAGE:
        for name in undocumented(markdown):
            log.warning("%s: diverseevol_fast.%s is public and is not on this page", API_PAGE, name)
    for mark, text in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown.replace("../bench/results/", "results/")


def undocumented(markdown: str) -> list[str]:
    """The public names that an API page does not show."""
    shown = set(re.findall(r"^::: diverseevol_fast\.(\w+)$", markdown, re.MULTILINE))
    return [name for name in diverseevol_fast.__all__ if name not in shown | {"__version__"}]


def commands_text() -> str:
    """Every command: what it does, its arguments, and what the options mean that all of them have."""
    parser = build_parser()
    helps = {action.dest: action.help for action in parser.commands._choices_actions}
    parts = []
    for name, command in parser.commands.choices.items():
        about = command.description or f"{helps[name]}."
        parts += [f"## diverseevol {name}", "", about[:1].upper() + about[1:], "", *_options(command), ""]
    return "\n".join(parts)


def _options(command: argparse.ArgumentParser) -> list[str]:
    lines = ["| argument | meaning |", "| --- | --- |"]
    for action in command._actions:
        if action.dest in ("help", "quiet", "debug", "json"):
            continue
        value = command._get_formatter()._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        names = ", ".join(action.option_strings)
        required = ", required" if action.required and names else ""
        choices = f" One of {', '.join(action.choices)}." if action.choices and action.metavar else ""
        lines.append(f"| {_code(f'{names} {value}'.strip())} | {_cell((action.help or '') + required + choices)} |")
    return lines


def config_text() -> str:
    """Every key of a config below its heading: default and meaning."""
    parts = []
    for heading, meanings in {**COMMON, "Less often needed": FURTHER}.items():
        parts += [f"## {heading}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        parts += [f"| `{key}` | {_default(DEFAULTS[key])} | {_cell(text)} |" for key, text in meanings.items()]
        parts.append("")
    return "\n".join(parts)


def strategies_text() -> str:
    """Every strategy and what its docstring says that it picks."""
    rows = ((name, inspect.getdoc(type(strategy)) or "") for name, strategy in STRATEGIES.items())
    return "\n".join(
        [
            "| name | picks |",
            "| --- | --- |",
            *(f"| `{name}` | {_cell(' '.join(text.split()))} |" for name, text in rows),
        ]
    )


MADE = {  # mark in a page: the text that is made in its place
    "<!-- commands -->": commands_text,
    "<!-- config keys -->": config_text,
    "<!-- strategies -->": strategies_text,
}


def _default(value) -> str:
    if value is MISSING:
        return "required"
    return "none" if value is None else _code(yaml.safe_dump(value).removesuffix("...\n").strip())


def _code(text: str) -> str:
    return f"<code>{_cell(text)}</code>"


def _cell(text: str) -> str:
    """Plain text in a table's cell: what HTML or Markdown would take for markup stays as it is."""
    return re.sub(r"[|*_\[\]{}`]", lambda mark: f"&#{ord(mark[0])};", html.escape(text, quote=False))


def drawing() -> str:
    """An SVG of 160 points in five clusters, twice, with 12 picks: at random, and by K-Center greedy."""
    draw = random.Random(5)
    clusters = [(70, 75, 80, 16), (190, 160, 50, 14), (60, 190, 15, 10), (200, 50, 10, 10), (130, 225, 5, 5)]
    points = [(draw.gauss(x, s), draw.gauss(y, s)) for x, y, count, s in clusters for _ in range(count)]
    at_random, greedy = draw.sample(points, 12), points[:1]
    while len(greedy) < 12:
        greedy.append(max(points, key=lambda p: min((p[0] - c[0]) ** 2 + (p[1] - c[1]) ** 2 for c in greedy)))
    panels = []
    for left, title, picks in ((0, "12 rows at random", at_random), (270, "12 rows by K-Center greedy", greedy)):
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#9e9e9e"/>' for x, y in points)
        rings = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#e65100"/>' for x, y in picks)
        panels.append(f'<g transform="translate({left})"><text x="130" y="18">{title}</text>{dots}{rings}</g>')
    style = 'font-family="sans-serif" font-size="14" text-anchor="middle" fill="#616161"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 530 265" {style}>{"".join(panels)}</svg>\n'
