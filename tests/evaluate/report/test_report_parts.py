"""The report's parts: intervals over seeds, charts, HTML that escapes, the plane, and the nearest rows of picks."""

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from markupsafe import Markup
from support.report_records import record

from diverseevol_fast._common.errors import InputError
from diverseevol_fast.evaluate.report import charts, seeds
from diverseevol_fast.evaluate.report.examples import BLOCK, picks_of, plane_of, text_of
from diverseevol_fast.evaluate.report.metrics import series
from diverseevol_fast.evaluate.report.page import Table, cut, html, render
from diverseevol_fast.evaluate.report.report import unique_names
from diverseevol_fast.evaluate.report.seeds import Point, over_seeds, t_interval

X = [100, 200, 300]


@pytest.mark.parametrize(
    ("degrees", "t"),
    [
        (1, 12.706204736),
        (2, 4.302652730),
        (3, 3.182446305),
        (4, 2.776445105),
        (9, 2.262157163),
        (10, 2.228138852),
        (99, 1.984216952),
        (1000, 1.962339081),
    ],
)
def test_intervals_have_students_quantiles(degrees, t):
    values = [0.0] * degrees + [1.0]
    mean, low, high = t_interval(values)
    half = t * np.std(values, ddof=1) / (degrees + 1) ** 0.5
    assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-9)


def test_the_mean_over_seeds_and_its_interval():
    mean, low, high = t_interval([1.0, 2.0, 6.0])
    half = 4.302652730 * np.std([1, 2, 6], ddof=1) / 3**0.5
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half))
    assert t_interval([2.5, 2.5]) == (2.5, 2.5, 2.5)
    assert over_seeds([Point(1.0, 0.5, 2.0)]) == (1.0, 0.5, 2.0)
    assert over_seeds([Point(1.0), None]) is None
    assert over_seeds([None]) is None


def test_runs_that_differ_in_their_seed_alone_are_one_line():
    runs = [record("a"), record("r", schedule="RandomSampling"), record("b", seed=1, rounds=2), record("c", n=5)]
    lines = seeds.lines_of(runs)
    assert [(line.name, [one.name for one in line.records]) for line in lines] == [
        ("KCenterSampling, 2 seeds", ["a", "b"]),
        ("r", ["r"]),
        ("c", ["c"]),
    ]
    assert lines[0].rounds == 2  # those that all runs have
    assert lines[0].sizes == [10, 20]
    points = lines[0].points(lambda one, r: None if (one.name, r) == ("b", 1) else Point(4.0))
    assert points == [(4.0, 4.0, 4.0), None]
    again = seeds.lines_of([record("a"), record("copy of a"), record("b", seed=1)])  # one seed twice: not three seeds
    assert [line.name for line in again] == ["a", "copy of a", "b"]
    twice = seeds.lines_of([record("a"), record("b", seed=1), record("c", n=5), record("d", seed=1, n=5)])
    assert [line.name for line in twice] == ["KCenterSampling, 2 seeds", "KCenterSampling, 2 seeds (c ...)"]


def test_names_are_told_apart_by_their_folders(tmp_path):
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "y"]
    assert unique_names(folders) == ["a/x", "b/x", "y"]
    with pytest.raises(InputError, match="is given twice"):
        unique_names([tmp_path / "y", tmp_path / "a" / ".." / "y"])


def test_series_keep_gaps_between_rounds_and_none_at_the_ends():
    assert series(X, [Point(1.0), None, Point(3.0)]) == (X, [1.0, None, 3.0], None, None)
    assert series(X, [None, None, Point(3.0)]) == ([300], [3.0], None, None)
    assert series(X, [Point(3.0), None, None]) == ([100], [3.0], None, None)
    assert series(X, [Point(1.0, 0.0, 2.0), None, Point(0.0)]) == (
        X,
        [1.0, None, 0.0],
        [0.0, None, 0.0],
        [2.0, None, 0.0],
    )
    assert series(X[:2], [Point(1.0), Point(3.0, 2.0, 5.0)]) == ([100, 200], [1.0, 3.0], [1.0, 2.0], [1.0, 5.0])
    assert series(X, [None, None, None]) == ([], [], None, None)


def test_a_point_without_a_neighbor_has_a_bar_and_no_line():
    y, low, high = [1.0, 2.0, None, 3.0], [0.5, 1.5, None, 2.5], [1.5, 2.5, None, 3.5]
    (axes,) = charts.lines({"a": ([1, 2, 3, 4], y, low, high)}, "x", "y", "t").axes
    (line,) = axes.lines
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, False]
    band, bars = axes.collections
    assert [segment.tolist() for segment in bars.get_segments()] == [[[4, 2.5], [4, 3.5]]]
    drawn = np.concatenate([path.vertices for path in band.get_paths() if np.ptp(path.vertices[:, 0])])
    assert (drawn.min(axis=0).tolist(), drawn.max(axis=0).tolist()) == ([1, 0.5], [2, 2.5])


NONE = np.zeros(0, dtype=int)
ABOUT = {"xlabel": "x", "ylabel": "y", "title": "t", "xlim": None, "ylim": (-3, 3)}
FIGURES = {
    "gaps": lambda: charts.lines({"_a $x$": (X, [1.0, None, 2.0], None, None)}, "x", "y", "t"),
    "bands": lambda: charts.lines({n: (X, [1, 2, 3], [0, 1, 2], [2, 3, 4]) for n in "abcdefghi"}, "x", "y", "t"),
    "one point": lambda: charts.lines(
        {"a": ([9], [1.0], [0.5], [2.0])}, "x", "y", "t", yardstick=("r", ([9], [1.0], [0.9], [1.2]))
    ),
    "gaps in bands": lambda: charts.lines({"a": (X, [1, None, 3], [0, None, 2], [2, None, 4])}, "x", "y", "t"),
    "nothing": lambda: charts.lines({}, "x", "y", "t"),
    "many rounds": lambda: charts.lines({"a": (list(range(40)), [1e6] * 40, None, None)}, "x", "y", "t"),
    "one scale": lambda: charts.lines({"a": (X, [1, 2, 3], None, None)}, "x", "y", "t", xlim=(0, 9), ylim=(-1, 7)),
    "bars": lambda: charts.stacked_bars(["0", "1"], {"a": [1, 2], "b": [None, 3.0]}, "x", "y", "t", top=9),
    "no bars": lambda: charts.stacked_bars(["0"], {"a": [None]}, "x", "y", "t"),
    "plane": lambda: charts.projection_by_round(np.eye(2), [np.array([0]), NONE], **ABOUT | {"title": "<b>&-->"}),
    "one round": lambda: charts.projection_by_round(np.zeros((1, 2)), [np.array([0])], **ABOUT),
    "kinds": lambda: charts.projection_by_kind(np.eye(2), [np.array([0]), NONE], ["_a $x$", "漢"], ["_a $x$"], **ABOUT),
    "no kind drawable": lambda: charts.projection_by_kind(np.eye(2), [NONE], ["漢", "漢"], ["漢"], **ABOUT),
}


@pytest.mark.parametrize("name", FIGURES)
def test_charts_of_any_data_become_svg_and_png(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = charts.svg(FIGURES[name](), "what <it>\x1b\ud800 shows", "c")
        charts.png(FIGURES[name](), tmp_path / "c.png")
    root = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert root.get("aria-label") == "what <it>\ufffd\ufffd shows"
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'xlink:href="#([^"]*)"|url\(#([^)]*)\)', text))
    assert {first or second for first, second in used} <= set(ids)
    assert not re.search("https?://", text.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', ""))
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    words = "".join(root.itertext())
    assert "nan" not in words.lower()
    if name in ("gaps", "kinds"):
        assert "_a $x$" in words  # neither left out nor set as mathematics
    if name == "plane":
        assert "<b>&-->" in words


def test_charts_of_one_page_share_no_id():
    first, second = (set(re.findall(r' id="([^"]*)"', charts.svg(FIGURES["bars"](), "a", name))) for name in "ab")
    assert first
    assert not first & second


def test_the_users_matplotlib_settings_are_neither_used_nor_changed():
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "svg.fonttype": "path"}):
        text = charts.svg(FIGURES["bars"](), "a", "c")
        assert matplotlib.rcParams["font.size"] == 30
    assert text == charts.svg(FIGURES["bars"](), "a", "c")
    assert "<text" in text


def test_what_the_charts_font_can_draw():
    assert charts.drawable("run-1 é Σ")
    for text in ("漢字", "a\nb", "\U0001f98a"):
        assert not charts.drawable(text)
    assert [charts.number(value) for value in (0, 2.43, 1e-5, 999.96, 12345.6, -3)] == [
        "0.000",
        "2.430",
        "1.000e-05",
        "1000",
        "12,346",
        "-3.000",
    ]


def test_html_is_escaped_unless_it_is_html():
    assert html("a\0b\ud800c\x1b\u2028d") == "a\ufffdb\ufffdc\ufffd\u2028d"
    html("\ud83d").encode()  # half a character, as broken data may hold
    run = "<r> \"'\x1b"
    one = Table('<c>"', ["<h>"], [["<r>", Markup("<small>x</small>"), "<td>"]])
    shown = render("diversity", model="&", random=5, charts=[], radii=one, measures=[(run, one)])
    assert "model (&amp;, the base model" in shown
    assert "All measures: &lt;r&gt; &#34;&#39;\ufffd</summary>" in shown
    assert 'aria-label="&lt;c&gt;&#34;"' in shown
    assert '<th scope="row">&lt;r&gt;</th><td><small>x</small></td><td>&lt;td&gt;</td>' in shown


def test_texts_are_cut_to_a_line():
    assert cut("a \n\t b", 9) == "a b"
    assert cut("x" * 10, 10) == "x" * 10
    assert cut("x" * 11, 10) == "x" * 9 + "…"
    assert cut("", 5) == ""


def test_the_page_forbids_what_it_does_not_need():
    parts = [("a", "A & b", Markup("<p>x</p>"))]
    text = render("page", title="<t>", verdict=["<v>"], sections=parts, version="1", folder="<f>")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert "<title>&lt;t&gt;</title>" in text
    assert "<li>&lt;v&gt;</li>" in text
    assert '<a href="#a">A &amp; b</a>' in text
    assert "<p>x</p>" in text
    assert set(charts.VARIABLES.values()) <= set(re.findall(r"(--[\w-]+):", text))


def principal(x, first):
    """Two principal components of x, from the first'th, and their shares of the variance: by numpy."""
    centered = x.double().numpy() - x.double().numpy().mean(axis=0)
    left, values, right = np.linalg.svd(centered, full_matrices=False)
    kept = slice(first, first + 2)
    signs = [np.sign(row[np.abs(row).argmax()]) for row in right[kept]]
    return left[:, kept] * values[kept] * signs, values[kept] ** 2 / (values**2).sum()


@pytest.mark.parametrize("n", [4, BLOCK + 5])
def test_the_plane_is_that_of_the_principal_components(n):
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((n, 5)) * [1, 5, 2, 0.1, 4] + 7).float()
    plane = plane_of(x)
    points, shares = principal(x, 0)
    np.testing.assert_allclose(plane.points(x), points, atol=1e-5)
    assert plane.shares == pytest.approx(shares)
    assert plane.left_out is None


def test_a_direction_that_holds_most_of_the_variance_is_not_in_the_plane():
    stripes = np.random.default_rng(0).standard_normal((200, 4)) * [0.1, 1, 0.5, 0.2]
    stripes[:100, 0] += 20  # two stripes: rows with and without an input, say
    x = torch.from_numpy(stripes).float()
    plane = plane_of(x)
    points, shares = principal(x, 1)
    np.testing.assert_allclose(plane.points(x), points, atol=1e-4)
    assert plane.shares == pytest.approx(shares, rel=1e-4)
    assert plane.left_out == pytest.approx(principal(x, 0)[1][0])
    assert plane.left_out > 0.9


def test_the_plane_of_few_or_equal_rows():
    for x in (torch.ones(4, 3), torch.ones(1, 3), torch.zeros(5, 1)):
        plane = plane_of(x)
        assert (plane.points(x) == np.zeros((len(x), 2))).all()
        assert plane.shares == (0.0, 0.0)
    for x in (torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0, 5, 5], [2.0, 5, 5]])):  # one direction is all there is
        plane = plane_of(x)
        np.testing.assert_allclose(plane.points(x), [[-1, 0], [1, 0]], atol=1e-12)
        assert plane.shares == pytest.approx((1.0, 0.0))
        assert plane.left_out is None


def test_charts_to_one_scale():
    (axes,) = FIGURES["one scale"]().axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 9), (-1, 7))
    (axes,) = FIGURES["no kind drawable"]().axes
    assert axes.get_ylim() == (-3, 3)
    assert charts.limits([2.0, None, 1.0]) == pytest.approx((0.94, 2.06))
    assert charts.limits([5.0]) == pytest.approx((4.5, 5.5))
    assert charts.limits([None]) is None


def test_the_commonest_kinds_have_colors():
    few = [kind for kind in "ba" for _ in range(3)] + ["c"] * 4
    assert charts.colors_of(few) == ["c", "a", "b"]
    many = [str(kind) for kind in range(13) for _ in range(20 - kind)]
    assert charts.colors_of(many) == [str(kind) for kind in range(11)]
    points, joined = np.arange(2.0 * len(many)).reshape(-1, 2), [np.array([0])]
    figure = charts.projection_by_kind(points, joined, many, charts.colors_of(many), **ABOUT)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*map(str, range(11)), "2 others"]
    pale, edged = figure.axes[0].collections[2:4]  # of kind 0; before them, those of the others
    assert (len(pale.get_offsets()), len(edged.get_offsets())) == (20, 1)


class FewRows:
    """A run of two rounds over rows 1 to 6 of 7; row 0 is held out."""

    rounds = 2
    candidates = np.arange(1, 7)
    pools = ((4, 2), (6, 1))

    def __init__(self, folder: Path, rows: list[dict]):
        from support.data import data_of

        from diverseevol_fast.runs.state import RunState

        self.data, self.state = data_of(rows), RunState(folder)
        self.state.record_selected(0, [4, 2], None)
        self.state.record_selected(1, [6, 1], [9.0, 0.25])

    def pool(self, r):
        return [row for pool in self.pools[: r + 1] for row in pool]


def test_picks_stand_beside_the_nearest_row_that_was_in_the_pool(tmp_path):
    rows = [
        {"instruction": f"q{i}", "input": "<in>" * (i == 6), "output": f"a{i}", "family": "fg"[i % 2]} for i in range(7)
    ]
    x = torch.tensor([[10.0, 0], [0, 1], [50, 0], [3, 4], [70, 0], [10, 3]])  # of rows 1 to 6
    picked = picks_of(FewRows(tmp_path, rows), x, plane_of(x))
    drawn, joined = picked.examples
    assert [(one.text.row, one.own_distance, one.nearest, one.distance) for one in drawn] == [
        (4, None, None, None),
        (2, None, None, None),
    ]
    assert [(one.text.row, one.own_distance, one.nearest.row) for one in joined] == [(6, 3.0, 4), (1, 0.5, 6)]
    assert [one.distance for one in joined] == pytest.approx([50**0.5, 3.0])
    assert joined[0].text.question == "q6\n<in>"
    assert (picked.kind_key, picked.kinds, picked.all_kinds) == ("family", [1, 2], 2)
    np.testing.assert_array_equal(picked.joined[1], [5, 0])
    np.testing.assert_array_equal(picked.points, plane_of(x).points(x))
    assert picked.kind_of == list("gfgfgf")


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"source": "ab", "family": "abc"}, "family"),  # by name, in KINDS' order
        ({"source": "ab", "origin": "ab"}, "source"),
        ({"origin": "abc", "split": "ab"}, "split"),  # no such name: the fewest values
        ({"origin": "ab", "split": "ab"}, "origin"),
        ({"split": "a"}, None),  # no two kinds
        ({"split": "abcdef"}, None),  # one for each row
        ({"split": [1, 2]}, None),
        ({"split": ["x" * 41, "y"]}, None),  # a text, not a name
        ({"family": ["a", "b", None], "split": "ab"}, "split"),  # not every row says it
        ({"instruction": "ab", "output": "cd"}, None),  # what the model reads
    ],
)
def test_the_field_that_says_of_what_kind_rows_are(fields, key, tmp_path):
    rows = [
        {"instruction": f"q{i}", "input": "", "output": f"a{i}"}
        | {name: values[i % len(values)] for name, values in fields.items()}
        for i in range(7)
    ]
    x = torch.eye(6)
    assert picks_of(FewRows(tmp_path, rows), x, plane_of(x)).kind_key == key


def test_what_a_conversation_asks_and_answers():
    from support.data import data_of

    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "h"},
        {"from": "gpt", "value": "g"},
        {"from": "human", "value": "more"},
    ]
    shown = text_of(data_of([{"conversations": turns}]), 0)
    assert (shown.question, shown.answer, shown.kind) == ("h", "g", None)
