"""The report's sections, of runs by hand: marks, best and last rounds, notes, caveats, costs, and what bands are."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup
from support.report_records import drawn_at, judged, measured, record, trained

from diverseevol_fast.evaluate.report import charts, sections
from diverseevol_fast.evaluate.report.examples import Picked, Plane
from diverseevol_fast.evaluate.report.metrics import (
    HELD_OUT_GROUPS_LOSS,
    VALIDATION_LOSS,
    Block,
    caveats,
    metrics_of,
    stage_metric,
)
from diverseevol_fast.evaluate.report.page import Chart, html
from diverseevol_fast.evaluate.report.picks_section import picks_section
from diverseevol_fast.evaluate.report.seeds import Line, line_of, lines_of


def diversity_of(line):
    return sections.diversity_section(Block("d", [line]), Drawn())


def losses(one, *values):
    return trained(one, *({} if value is None else {"validation_loss": value} for value in values))


class Drawn(dict):
    """Charts by name: figure, words, caption."""

    def __call__(self, name, *shown):
        self[name] = shown
        return Chart(Markup(), shown[-1])


def cells(shown, caption):
    """Of the one table whose caption begins so: by its rows' heads, the cells' texts."""
    (found,) = [
        each
        for each in ElementTree.fromstring(f"<p>{shown}</p>").iter("table")
        if "".join(each.find("caption").itertext()).startswith(caption)
    ]
    rows = [["".join(cell.itertext()) for cell in row] for row in found.find("tbody")]
    return {head: rest for head, *rest in rows}


@pytest.mark.parametrize(
    ("pools", "vendi", "radius"),
    [
        ([[7.0]], " ▲", " ▼"),
        ([[1.0]], " ▼", " ▲"),
        ([[6.0]], "", ""),  # as far as the highest of them, not farther
        ([[2.0]], "", ""),
        ([[7.0], [8.0]], " ▲", " ▼"),
        ([[1.0], [0.5]], " ▼", " ▲"),
        ([[20.0], [5.0]], "", ""),  # the mean is outside, one of the pools is not
        ([[7.0], [1.0]], "", ""),
    ],
)
def test_a_mark_says_that_every_pool_is_outside_its_random_subsets(pools, vendi, radius):
    records = [measured(record(str(seed), seed, rounds=1), *values) for seed, values in enumerate(pools)]
    shown = diversity_of(Line("a", records, "a"))
    mean = sum(values[0] for values in pools) / len(pools)
    assert cells(shown, "a: ") == {
        "Vendi Score": [f"{mean:#.4g}{vendi}4.000 (2.000 to 6.000)"],
        "Covering radius": [f"{mean:#.4g}{radius}4.000 (2.000 to 6.000)"],
    }
    assert (f"the mean of {len(pools)} pools" in shown) == (len(pools) > 1)


def test_each_seed_is_compared_with_its_own_random_subsets():
    low, high = (measured(record(str(seed), seed, rounds=1), 7.0) for seed in (0, 1))
    high.diversity["rounds"][0]["random"] = drawn_at(7.0, 6.5, 8.0)
    assert "▲" not in cells(diversity_of(Line("a", [low, high], "a")), "a: ")["Vendi Score"][0]
    assert "▲" in cells(diversity_of(line_of(low)), "0: ")["Vendi Score"][0]


def test_a_measure_that_is_not_to_be_had_has_no_mark():
    one = measured(record("a", rounds=2), None, 7.0)
    one.diversity["rounds"][0]["random"] = drawn_at(None, None, None)
    one.diversity["rounds"][1]["random"] = {}
    assert cells(diversity_of(line_of(one)), "a: ")["Vendi Score"] == ["-", "7.000"]


def test_the_best_round_has_the_lowest_loss_or_the_highest_score():
    one = judged(losses(record("a"), 3.0, 1.0, 2.0), "t against r", 70.0, 60.0, None)
    validation, score = metrics_of(Block("d", [line_of(one)]))
    assert sections._best_and_last(validation, line_of(one)) == [
        VALIDATION_LOSS,
        "a",
        1,
        "1.000",
        2,
        "2.000",
    ]
    name, _, best, best_cell, last, last_cell = sections._best_and_last(score, line_of(one))
    assert (name, best, last) == ("Relative Score: t against r", 0, 1)  # the last round that has the figure
    assert best_cell == "70.00<small>(69.00 to 71.00)</small>"
    assert last_cell == "60.00<small>(59.00 to 61.00)</small>"


def test_rounds_that_not_all_seeds_have_are_said():
    seeds = [losses(record("a"), 3.0, 2.0, None), losses(record("b", 1), 3.0, None, None)]
    block = Block("d", lines_of(seeds))
    drawn = Drawn()
    shown = sections.quality_section(block, drawn)
    assert shown.count("is left out") == 1
    note = "Validation loss, KCenterSampling, 2 seeds: round 1 is left out, 1 of 2 runs have it."
    assert f'<p class="note">{note}</p>' in shown
    assert [row[1:] for row in cells(shown, "Validation loss, round by round.").values()] == [
        ["3.000(3.000 to 3.000)"],
        ["-"],
        ["-"],
    ]


def test_unfinished_runs_are_said():
    block = Block("d", [line_of(record("a", rounds=2)), line_of(record("b", rounds=3))])
    assert sections._unfinished(block) == ["a: 2 of 3 rounds are finished."]


SEED = "The seed draws the validation rows"
NUMBERS = "different numbers of rows out"
KINDS = "The runs keep different groups out of their pools"
LENGTHS = "The runs cut rows at different lengths"
MODELS = "The runs have different base models"


@pytest.mark.parametrize(
    ("first", "second", "shown", "words"),
    [
        ({}, {}, [VALIDATION_LOSS, HELD_OUT_GROUPS_LOSS], []),
        ({}, {"seed": 1}, [VALIDATION_LOSS], [SEED]),
        ({}, {"seed": 1}, [HELD_OUT_GROUPS_LOSS], []),
        ({}, {"seed": 1, "val_set_size": 0}, [VALIDATION_LOSS], [NUMBERS]),  # one of them holds no rows out
        ({}, {"val_set_size": 5}, [VALIDATION_LOSS, "Relative Score: t"], [NUMBERS]),
        ({}, {"val_set_size": 5}, [HELD_OUT_GROUPS_LOSS], []),
        ({"held_out_groups": {"k": ["a"]}}, {"held_out_groups": {"k": ["b"]}}, [HELD_OUT_GROUPS_LOSS], [KINDS]),
        ({}, {"held_out_groups": {"k": ["b"]}}, [VALIDATION_LOSS], [KINDS]),
        (
            {"held_out_groups": {"a": [1], "b": [2]}},
            {"held_out_groups": {"b": [2], "a": [1]}},
            [HELD_OUT_GROUPS_LOSS],
            [],
        ),
        ({}, {"model_max_length": 99}, [VALIDATION_LOSS], [LENGTHS]),
        ({}, {"model_name_or_path": "n"}, [HELD_OUT_GROUPS_LOSS], [MODELS]),
        ({}, {"model_name_or_path": "n", "seed": 1, "val_set_size": 5, "model_max_length": 9}, ["Relative Score"], []),
    ],
)
def test_caveats_are_those_of_the_losses_that_are_shown(first, second, shown, words):
    block = Block("d", [line_of(record("a", config=first)), line_of(record("b", config=second))])
    found = caveats(block, shown)
    assert len(found) == len(words)
    assert all(begin in said for begin, said in zip(words, found, strict=True))


def test_what_bands_are():
    one = losses(record("a"), 1.0, 2.0, 3.0)
    with_interval = trained(record("b"), *[{"validation_loss": 1.0, "validation_interval": [0.5, 2.0]}] * 3)
    seeds = Line("2 seeds", [one, losses(record("c", 1), 1.0, 2.0, 3.0)], "2 seeds")
    scored = line_of(judged(record("d"), "t", 70.0))
    (validation,) = metrics_of(Block("d", [seeds]))
    (score,) = metrics_of(Block("d", [scored]))
    rows, t = "of one run, 95% by resampling its rows", "of several seeds, the 95% t interval of their mean"
    assert sections._bands(validation, [line_of(one)]) == "Lower is better. No intervals."
    assert sections._bands(validation, [line_of(one), line_of(one)]) == "Lower is better. No intervals."
    assert sections._bands(validation, [line_of(with_interval)]) == f"Lower is better. Bands: {rows}."
    assert sections._bands(validation, [seeds, line_of(with_interval)]) == f"Lower is better. Bands: {t}; {rows}."
    assert sections._bands(score, [scored]) == ("Higher is better. Bands: of one run, 95% by resampling its questions.")


def test_charts_of_diversity_say_which_band_is_which():
    for seeds, words in ((1, False), (2, True)):
        block = Block("d", lines_of([measured(record(str(s), s), 3.0, 3.5, 4.0) for s in range(seeds)]))
        drawn = Drawn()
        sections.diversity_section(block, drawn)
        for name in ("vendi-score", "covering-radius"):
            caption = drawn[name][-1]
            assert "The grey band: from the lowest to the highest of the random subsets." in caption
            assert ("of several seeds, the 95% t interval" in caption) == words


def test_radii_by_the_runs_own_models_are_numbers_and_never_averaged():
    radii = {"a": [None, 10.0, 20.0], "b": [None, 1.0, 2.0]}
    seeds = [
        replace(
            measured(record(name, seed), 3.0, 3.5, 4.0), metrics=[{"select": {"radius": r} if r else {}} for r in own]
        )
        for seed, (name, own) in enumerate(radii.items())
    ]
    drawn = Drawn()
    shown = sections.diversity_section(Block("d", lines_of(seeds)), drawn)
    assert cells(shown, "Radius by the runs' own models.") == {"1": ["10.00", "1.000"], "2": ["20.00", "2.000"]}
    assert list(drawn) == ["covering-radius", "vendi-score"]  # no line through them
    without = sections.diversity_section(Block("d", [line_of(measured(record("c"), 3.0, 3.5, 4.0))]), Drawn())
    assert "own models" not in without


def test_the_covering_radius_comes_first():
    one = measured(record("a", rounds=1), 3.0)
    assert list(cells(diversity_of(line_of(one)), "a: ")) == ["Covering radius", "Vendi Score"]


def test_charts_side_by_side_are_to_one_scale():
    figures = [
        {"validation_loss": 3.0, "held_out_groups_loss": 9.0},
        {"validation_loss": 2.0, "held_out_groups_loss": 8.0},
    ]
    short = trained(record("a", rounds=2), *figures)
    long = judged(trained(record("b", schedule="RandomSampling"), *figures, {"validation_loss": 1.0}), "t", 70.0)
    drawn = Drawn()
    sections.quality_section(Block("d", [line_of(short), line_of(long)]), drawn)
    validation, held_out_groups, score = [figure.axes[0] for figure, *_ in drawn.values()]
    assert validation.get_ylim() == held_out_groups.get_ylim() == charts.limits([1.0, 9.0])
    assert score.get_ylim() == charts.limits([69.0, 71.0])
    assert validation.get_xlim() == held_out_groups.get_xlim() == score.get_xlim() == charts.limits([10, 30])

    timed = [
        replace(record(name, rounds=rounds, schedule=name), metrics=[{"train": {"seconds": rounds}}] * rounds)
        for name, rounds in (("KCenterSampling", 2), ("RandomSampling", 5))
    ]
    for one in timed:
        one.sizes[:] = [10 * r for r in range(1, one.run.rounds + 1)]
    drawn = Drawn()
    sections.cost_section(Block("d", [line_of(one) for one in timed]), drawn)
    first, second = [figure.axes[0] for figure, *_ in drawn.values()]
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()


def picked_of(kinds, points, joined):
    plane = Plane(None, None, (0.5, 0.25))
    return Picked([[]], "family" if kinds else None, [2] if kinds else [], 2, kinds, plane, points, joined)


@pytest.mark.parametrize("kinds", [["f", "g", "g"], []])
def test_the_planes_of_runs_are_to_one_scale_and_colored_alike(kinds):
    points = np.array([[0.0, 0], [1, 2], [3, 1]])
    runs = [replace(record(n), picked=picked_of(kinds, points * s, [np.array([0])])) for n, s in (("a", 1), ("b", 2))]
    drawn = Drawn()
    shown = picks_section(Block("d", [line_of(one) for one in runs]), drawn)
    first, second = [figure.axes[0] for figure, *_ in drawn.values()]
    assert first.get_xlim() == second.get_xlim() == charts.limits([0, 6])
    assert first.get_ylim() == second.get_ylim() == charts.limits([0, 4])
    assert ("in the colors of “family”" in shown) == bool(kinds)
    assert ("the pool by round" in shown) == (not kinds)
    assert first.get_xlabel() == "direction 1 (50% of the variance)"


def test_a_direction_that_is_left_out_is_said():
    picked = replace(picked_of([], np.eye(2), [np.array([0])]), plane=Plane(None, None, (0.05, 0.02), 0.9))
    drawn = Drawn()
    shown = picks_section(Block("d", [line_of(replace(record("a"), picked=picked))]), drawn)
    assert "The first direction, which alone holds 90% of the variance, is left out" in shown
    ((figure, *_),) = drawn.values()
    assert figure.axes[0].get_xlabel() == "direction 2 (5% of the variance)"


def test_costs_are_the_means_of_what_each_run_took():
    """A round of which nothing is known has no cost, which is not 0; a stage that one run lacks counts in the other's.

    Columns: rows, train loss, training, embedding, all, tokens/s.
    """
    embedded = {"embed": {"seconds": 8.0}}
    metrics = (
        [{"train": {"seconds": 1.0}} | embedded, {"train": {"seconds": 2.0}} | embedded, {}],
        [{"train": {"seconds": 3.0}} | embedded, {"train": {"seconds": 4.0}}, {}],
    )
    seeds = [replace(record(str(seed), seed), metrics=one) for seed, one in enumerate(metrics)]
    drawn = Drawn()
    shown = sections.cost_section(Block("d", lines_of(seeds)), drawn)
    assert cells(shown, "KCenterSampling, 2 seeds.") == {
        "0": ["10", "-", "2.00", "8.00", "10.00", "-"],
        "1": ["20", "-", "3.00", "-", "7.00", "-"],
        "2": ["30", "-", "-", "-", "-", "-"],
    }
    assert drawn["seconds-1"][1] == "Seconds per round. round 0: 10.00 s; round 1: 7.000 s."
    assert shown.count("is left out") == 1
    assert "Seconds, embedding, KCenterSampling, 2 seeds: round 1 is left out, 1 of 2 runs have it." in shown


def test_costs_that_one_seed_alone_has_are_its_own():
    seeds = [replace(record("a"), metrics=[{"train": {"seconds": 1.5}}, {}, {}]), record("b", 1)]
    shown = sections.cost_section(Block("d", lines_of(seeds)), Drawn())
    assert cells(shown, "a.")["0"] == ["10", "-", "1.50", "1.50", "-"]
    assert "no records of their time" in sections.cost_section(Block("d", [line_of(record("b"))]), Drawn())


@pytest.mark.parametrize("test", ["漢字 against x", "a\x1b\ud800 against \ud800", "x" * 300 + " against y"])
def test_a_test_may_be_called_anything(test, tmp_path):
    one = judged(record("a"), test, 70.0, None, 80.0)
    drawn = Drawn()
    shown = sections.quality_section(Block("d", [line_of(one)]), drawn)
    ((name, (figure, words, caption)),) = drawn.items()
    charts.png(figure, tmp_path / f"{name}.png")
    assert len(name) < 200
    text = charts.svg(figure, words, name)
    text.encode()
    assert not {"\x1b", "漢"} & set(text)
    if "x" * 300 in test:
        assert words.startswith(f"Relative Score: {test}")
    else:
        assert words.startswith("Relative Score, test 1 by ")
        assert caption.startswith(f"Relative Score: {test}. ")
        assert html(f"Relative Score: {test} (in charts: Relative Score, test 1), round by round.") in shown


def test_a_gap_between_rounds_is_not_in_the_words():
    one = losses(record("a"), 1.0, None, 3.0)
    _, words = sections._lines([line_of(one)], stage_metric("train", "validation_loss"), "t", "u")
    assert words == "t by rows in the pool. a: 1.000 at 10, 3.000 at 30."
