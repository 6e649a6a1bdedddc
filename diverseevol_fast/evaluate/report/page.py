"""HTML out of plain values: elements that escape what they are given, tables, charts, and the page around them."""

import re
from collections.abc import Sequence
from html import escape

NOTHING = "-"  # in a table, where there is no figure
VOID = {"meta", "link", "br"}  # elements without an end
NOT_SHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
# Nothing in the page may be fetched or run, whatever the data says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light dark; --ink: #1f2329; --muted: #5f6771; --line: #dfe2e6; --paper: #fffffe;
  --shade: #f5f6f8; --link: #0b5cad; --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73;
  --series-3: #cc79a7; --series-4: #e69f00; --series-5: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --muted: #a3abb5; --line: #363c44; --paper: #16191d;
  --shade: #1f2328; --link: #7db8f5; --series-0: #4fa8e0; --series-1: #f58549; --series-2: #35c799;
  --series-3: #e09ac2; --series-4: #f0b53c; --series-5: #8fd0f7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 120rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, li, dd { max-width: 46rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; }
.verdict { border: 1px solid var(--line); border-left: .3rem solid var(--series-0); background: var(--shade);
  padding: .25rem 1rem .5rem; max-width: 60rem; }
.verdict h2 { border: 0; margin: .25rem 0 0; padding: 0; } .verdict ul { padding-left: 1.2rem; margin: .5rem 0; }
.verdict li { max-width: none; }
.note, figcaption, caption, footer { color: var(--muted); font-size: .9rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.charts figure { flex: 1 1 min(100%, 26rem); max-width: 40rem; }
.tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem; }
figure { margin: .5rem 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
figcaption { margin-top: .4rem; }
.wide { overflow-x: auto; max-width: 100%; margin: 1rem 0;  /* a shadow where there is more to scroll to */
  background: linear-gradient(to right, var(--paper) 40%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to right, #8886, transparent) left / .6rem 100% no-repeat scroll,
  linear-gradient(to left, #8886, transparent) right / .6rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; max-width: min(46rem, 100vw - 2rem); }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--muted); vertical-align: bottom; }
th { font-weight: 600; overflow-wrap: break-word; }
thead th { min-width: 5rem; max-width: 16rem; }
tbody th { white-space: nowrap; }
.numbers td, .numbers thead th + th { text-align: right; } .numbers td { white-space: nowrap; }
.facts td { min-width: 11rem; }
.texts td { min-width: 7rem; } .texts td.text { min-width: 17rem; max-width: 26rem; }
td small { display: block; color: var(--muted); }
.kind { display: inline-block; padding: 0 .45rem; border-radius: .6rem; background: var(--shade);
  border: 1px solid var(--line); font-size: .8rem; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
dt { font-weight: 600; margin-top: .9rem; } dd { margin: .1rem 0 0; }
@media (max-width: 34rem) { body { font-size: 15px; } th, td { padding: .3rem .5rem; }
  tbody th { white-space: normal; max-width: 9rem; } }
@media print { h2 { break-after: avoid; } figure, tr { break-inside: avoid; } .wide { overflow: visible; }
  table { font-size: .65rem; }
  th, td, .numbers td, tbody th { min-width: 0; white-space: normal; padding: .15rem .3rem; } }
"""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(value: object) -> Html:
    """The value as HTML: escaped, unless it is; characters that a page must not hold are replaced."""
    return value if isinstance(value, Html) else Html(escape(NOT_SHOWN.sub("\ufffd", str(value))))


def element(tag: str, *content: object, **attributes: str) -> Html:
    """<tag ...>content</tag>. `class_` is the attribute class, `aria_label` aria-label."""
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    start = "".join([f"<{tag}", *(f' {name}="{html(value)}"' for name, value in names), ">"])
    return Html(start if tag in VOID else f"{start}{join(content)}</{tag}>")


def join(parts: Sequence[object]) -> Html:
    """One after the other."""
    return Html("".join(map(html, parts)))


def table(caption: object, head: Sequence[object], rows: Sequence[Sequence[object]], kind: str = "numbers") -> Html:
    """A table whose first column heads the rows; it scrolls by itself where it is too wide.

    Args:
        kind: "numbers", "facts" or "texts", for the look. Cells are text, or <td> elements.
    """
    lines = [element("tr", element("th", first, scope="row"), *map(_cell, rest)) for first, *rest in rows]
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *(element("th", name, scope="col") for name in head))),
            element("tbody", *lines),
            class_=kind,
        ),
        class_="wide", tabindex="0", role="region", aria_label=_plain(caption),
    )  # fmt: skip


def details(summary: str, *content: object, shown: bool) -> Html:
    """What a reader opens; `shown`: it is open at first."""
    return element("details", element("summary", summary), *content, **({"open": ""} if shown else {}))


def number_or_nothing(value: float | None, form: str) -> str:
    """A figure in a format's form."""
    return NOTHING if value is None else format(value, form)


def cut(text: str, longest: int) -> str:
    """At most `longest` characters of the text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def figure(svg: str, caption: object) -> Html:
    """A chart with what it shows."""
    return element("figure", Html(svg), element("figcaption", caption))


def section(name: str, title: str, *content: object) -> Html:
    """A part of the page; `name` is what links name."""
    return Html(f"\n{element('section', element('h2', title, id=name), *content)}\n")


def page(title: str, lead: object, sections: Sequence[tuple[str, str, Html]], foot: object) -> str:
    """The whole document.

    Args:
        lead: what stands above everything.
        sections: name, title and content of each.
        foot: what stands below everything.
    """
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    main = element(
        "main",
        element("h1", title),
        lead,
        element("nav", element("ul", *links), aria_label="Parts of this page"),
        *(section(*part) for part in sections),
        element("footer", foot),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', main), lang='en')}\n"


def _cell(value: object) -> Html:
    shown = html(value)
    return shown if shown.startswith("<td") else element("td", shown)


def _plain(value: object) -> Html:
    """Without elements: for an attribute."""
    return Html(re.sub(r"<[^>]*>", "", html(value)))
