"""The verdict's sentences, of runs by hand: told apart or not, one round, no test, families, radii, seeds."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.report_records import drawn_at, judged, measured, record, trained

from diverseevol_fast.evaluate.report.metrics import Block
from diverseevol_fast.evaluate.report.seeds import Point, lines_of
from diverseevol_fast.evaluate.report.verdict import NO_TEST, ONE_SEED, told_apart, verdict


def picks(one, kinds, of=37, key="family"):
    return replace(one, picked=SimpleNamespace(kind_key=key, kinds=kinds, all_kinds=of))


def run(name, losses=(), radii=(), seed=0, schedule="KCenterSampling", kinds=None, rounds=3, config=None, **provenance):
    """A run by hand. losses: by round, (loss, low, high), or (loss,) without an interval; None: no such figure."""
    one = record(name, seed, rounds, schedule, config, **provenance)
    figures = [{} if loss is None else {"validation_loss": loss[0]} | interval(loss) for loss in losses]
    one = trained(one, *(figures or [{}] * rounds))
    one = measured(one, *(radii or [5.0] * rounds))
    return picks(one, kinds, key="family" if kinds else None)


def interval(loss):
    return {"validation_interval": list(loss[1:])} if len(loss) > 1 else {}


def said(*runs):
    return verdict([Block("d", lines_of(runs))])


def of_loss(*runs):
    (found,) = (sentence for sentence in said(*runs) if sentence.startswith("Validation loss: "))
    return found.removeprefix("Validation loss: ")


BEFORE = [(3.0, 2.9, 3.1), (2.9, 2.8, 3.0)]


def kcenter(last, **more):
    return run("kc", [*BEFORE, last], **more)


def random(last, name="rnd", schedule="RandomSampling", **more):
    return run(name, [*BEFORE, last], schedule=schedule, **more)


def test_two_strategies_whose_intervals_do_not_overlap():
    better = kcenter((2.43, 2.35, 2.51), radii=[5, 4, 1.0], kinds=[20, 30, 37])
    assert said(better, random((2.78, 2.70, 2.86), kinds=[20, 25, 31])) == [
        "Compared at 30 rows in the pool, the last round of each: K-Center (kc), random (rnd).",
        "Covering radius, the largest distance of a candidate to the pool: K-Center 1.000, less than each of 5 random "
        "subsets of that size, 2.000 to 6.000; random 5.000, among 5 random subsets of that size, 2.000 to 6.000.",
        "K-Center reached 37 of 37 task families, random 31.",
        "Validation loss: lower with K-Center, 2.430 (2.350 to 2.510) against 2.780 (2.700 to 2.860) with random.",
        ONE_SEED,
    ]


@pytest.mark.parametrize(
    ("last", "other", "words"),
    [
        ((2.8, 2.7, 2.9), (2.4, 2.3, 2.5), "lower with random, 2.400 (2.300 to 2.500) against"),
        (
            (2.4, 2.3, 2.6),
            (2.7, 2.6, 2.8),
            "not told apart, K-Center 2.400 (2.300 to 2.600), random 2.700 ",
        ),  # they touch
        ((2.7, 2.5, 2.9), (2.6, 2.4, 2.8), "not told apart, random 2.600 (2.400 to 2.800), K-Center 2.700 "),
        (
            (2.4,),
            (2.7, 2.6, 2.8),
            "K-Center 2.400, random 2.700 (2.600 to 2.800); without intervals nothing says whether",
        ),
        ((2.4,), (2.7,), "K-Center 2.400, random 2.700; without intervals nothing says whether"),
    ],
)
def test_losses_are_told_apart_by_their_intervals(last, other, words):
    assert of_loss(kcenter(last), random(other)).startswith(words)


def test_a_higher_relative_score_is_better():
    scored = [
        judged(run(n, schedule=s), "t", 0, 0, v)
        for n, s, v in (
            ("kc", "KCenterSampling", 70.0),
            ("rnd", "RandomSampling", 60.0),
        )
    ]
    found = said(*scored)
    assert (
        "Relative Score: t: higher with K-Center, 70.00 (69.00 to 71.00) against 60.00 (59.00 to 61.00) with random."
        in found
    )
    assert NO_TEST not in found


def test_more_than_two_are_compared_with_the_best():
    others = [random((2.5, 2.4, 2.6), "v", "VendiSampling"), random((2.8, 2.7, 2.9), "m", "MarginSampling")]
    more = [random((2.9,), "e", "EntropySampling"), kcenter((2.45, 2.41, 2.5))]
    assert of_loss(*others, *more) == (
        "the lowest is that of K-Center, 2.450 (2.410 to 2.500). Told apart from it: margin 2.800 (2.700 to 2.900). "
        "Not told apart from it: Vendi 2.500 (2.400 to 2.600). No intervals: entropy 2.900."
    )


def test_runs_of_one_strategy_are_called_by_their_names():
    wide = run("wide", [*BEFORE, (2.7, 2.6, 2.8)], kinds=[1, 2, 3], n=5)
    found = said(kcenter((2.4, 2.3, 2.5), kinds=[1, 2, 4]), wide)
    assert found[2] == "kc reached 4 of 37 task families, wide 3."
    assert found[0] == "Compared at 30 rows in the pool, the last round of each: kc, wide."
    assert "Validation loss: lower with kc, 2.400 (2.300 to 2.500) against 2.700 (2.600 to 2.800) with wide." in found


def test_runs_are_compared_at_a_pool_that_all_have():
    short = run("rnd", [(3.5, 3.4, 3.6), (3.2, 3.1, 3.3)], schedule="RandomSampling", rounds=2, kinds=[9, 11])
    found = said(kcenter((2.4, 2.3, 2.5), kinds=[10, 20, 30]), short)
    assert found[0] == "Compared at 20 rows in the pool: K-Center (kc), random (rnd)."
    assert "K-Center reached 20 of 37 task families, random 11." in found
    assert (
        "Validation loss: lower with K-Center, 2.900 (2.800 to 3.000) against 3.200 (3.100 to 3.300) with random."
        in found
    )
    gone = run("rnd", [*BEFORE, None], schedule="RandomSampling")
    assert of_loss(kcenter((2.4, 2.3, 2.5)), gone).startswith("not told apart, K-Center 2.900 ")  # where both have it
    short.sizes[:] = [5, 15]
    assert said(kcenter((2.4, 2.3, 2.5)), short) == [
        "The runs have no pool of the same size, so their figures are not compared."
    ]


def test_no_test_is_said():
    assert said(run("kc"), run("rnd", schedule="RandomSampling"))[-1] == NO_TEST
    assert said(run("kc"))[-1] == NO_TEST
    one_has_it = of_loss(kcenter((2.4, 2.3, 2.5)), run("rnd", schedule="RandomSampling"))
    assert one_has_it == "not compared, fewer than two of the strategies have it."


def test_losses_that_do_not_compare_are_not_compared():
    other_model = random((2.7, 2.6, 2.8), config={"model_name_or_path": "n"})
    assert of_loss(kcenter((2.4, 2.3, 2.5)), other_model).startswith(
        "not compared. The runs have different base models"
    )
    other_seed = random((2.7, 2.6, 2.8), seed=1)
    assert of_loss(kcenter((2.4, 2.3, 2.5)), other_seed).startswith("not compared. The seed draws the validation rows")


def test_families_that_not_all_rows_say_are_left_out():
    sentences = said(kcenter((2.4, 2.3, 2.5), kinds=[1, 2, 3]), random((2.7, 2.6, 2.8)))
    assert not [sentence for sentence in sentences if "reached" in sentence]
    by_source = picks(kcenter((2.4, 2.3, 2.5)), [1, 2, 3], of=4, key="source")
    assert "K-Center reached 3 of 4 sources." in said(by_source)
    by_split = picks(kcenter((2.4, 2.3, 2.5)), [1, 2, 3], of=4, key="split")
    assert "K-Center reached 3 of 4 values of “split”." in said(by_split)


def test_one_run_is_compared_with_its_first_round():
    alone = kcenter((2.4, 2.3, 2.5), radii=[5, 5, 7.0], kinds=[20, 30, 37])
    assert said(alone) == [
        "K-Center (kc): 3 rounds, from 10 to 30 rows in the pool.",
        "Covering radius, the largest distance of a candidate to the pool: K-Center 7.000, more than each of 5 random "
        "subsets of that size, 2.000 to 6.000.",
        "K-Center reached 37 of 37 task families.",
        "Validation loss: lower with round 2, 2.400 (2.300 to 2.500) against 3.000 (2.900 to 3.100) with round 0.",
    ]
    assert of_loss(kcenter((3.05, 2.95, 3.15))).startswith(
        "not told apart, round 0 3.000 (2.900 to 3.100), round 2 3.050"
    )
    assert of_loss(kcenter((3.5, 3.4, 3.6))).startswith("lower with round 0, 3.000 (2.900 to 3.100) against 3.500")
    scored = judged(run("kc"), "t", 60.0, 0, 70.0)
    assert any(one.startswith("Relative Score: t: higher with round 2, 70.00 ") for one in said(scored))


def test_one_round_has_nothing_to_be_compared_with():
    found = said(run("kc", [(3.0, 2.9, 3.1)], rounds=1))
    assert found[0] == "K-Center (kc): 10 rows in the pool."
    only = "3.000 (2.900 to 3.100) in round 0; no other round has one, so there is nothing to compare it with."
    assert found[-1] == f"Validation loss: {only}"


def seeds(schedule, *losses):
    """Runs of seeds 0, 1 ...: each's loss in the only round."""
    return [
        run(f"{schedule}-{seed}", [(loss,)], seed=seed, schedule=schedule, rounds=1, kinds=[30 + seed])
        for seed, loss in enumerate(losses)
    ]


def test_several_seeds_are_told_apart_by_their_differences():
    """Seeds differ by far more than strategies: the intervals overlap, those of the differences leave 0 out."""
    ours = seeds("KCenterSampling", 2.0, 3.0, 4.0)
    found = said(*ours, *seeds("RandomSampling", 2.5, 3.5, 4.6))
    assert found[0].endswith("the last round of each: K-Center (3 seeds), random (3 seeds).")
    assert "K-Center reached 30 to 32 of 37 task families, random 30 to 32." in found
    assert "for each of 3 seeds among 5 random subsets of that size" in found[1]
    assert found[-1].startswith("Validation loss: lower with K-Center, 3.000 (")
    assert ONE_SEED not in found
    assert of_loss(*ours, *seeds("RandomSampling", 2.5, 2.8, 4.6)).startswith("not told apart, K-Center 3.000 (")


def test_radii_that_differ_from_seed_to_seed_beside_random_subsets():
    runs = seeds("KCenterSampling", 2.0, 3.0)
    runs[0] = measured(runs[0], 1.0)
    assert (
        "K-Center 3.000 (-22.41 to 28.41), which beside 5 random subsets of that size differs from seed to seed"
        in (said(*runs)[1])
    )
    runs[0].diversity["rounds"][0]["random"] = runs[1].diversity["rounds"][0]["random"] = drawn_at(None, None, None)
    assert "K-Center 3.000 (-22.41 to 28.41)." in said(*runs)[1]  # no random subsets: nothing said of them


def test_data_sets_are_told_of_one_by_one():
    blocks = [Block(title, lines_of([kcenter((2.4, 2.3, 2.5))])) for title in ("a.json", "b.json")]
    found = verdict(blocks)
    alone = verdict(blocks[:1])
    assert found[:-1] == [f"a.json: {one}" for one in alone] + [f"b.json: {one}" for one in alone]
    assert found[-1].startswith("These runs are on 2 different data sets (a.json, b.json).")


def test_told_apart():
    assert told_apart(Point(1, 0.9, 1.1), Point(1.3, 1.2, 1.4)) is True
    assert told_apart(Point(1.3, 1.2, 1.4), Point(1, 0.9, 1.1)) is True
    assert told_apart(Point(1, 0.9, 1.2), Point(1.3, 1.2, 1.4)) is False
    assert told_apart(Point(1, 0.9, 1.2), Point(1.1, 1.0, 1.15)) is False
    assert told_apart(Point(1), Point(1.3, 1.2, 1.4)) is None
