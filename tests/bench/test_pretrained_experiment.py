"""The experiment on a real model: its rows, its statistics and tables, and what the arms of a seed share."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="needs the checkout")
sys.path.insert(0, str(ROOT / "bench" / "experiments" / "pretrained"))

import pretrained_tables  # noqa: E402
import rows as experiment_rows  # noqa: E402
import run_pretrained  # noqa: E402

from diverseevol_fast.runs.config import load_config  # noqa: E402


def line(arm: str, seed: int, loss: float) -> dict:
    return {
        "arm": arm,
        "seed": seed,
        "validation_loss": loss,
        "held_out_groups_loss": 2 * loss,
        "loss_by_source": {"gsm8k": [3.0 * loss, 3], "t0": [loss, 2]},
        "groups_in_pool": 20,
        "pool_by_source": {"gsm8k": 90 - seed, "t0": 10 + seed} if arm == "random" else {"t0": 100},
        "tokens_in_pool": 1000,
    }


def lines(seeds=range(5)) -> list[dict]:
    rng = np.random.default_rng(0)
    shift = {arm: -0.1 * place for place, arm in enumerate(run_pretrained.ARMS)}
    return [line(arm, seed, 2 + shift[arm] + 0.01 * rng.standard_normal()) for seed in seeds for arm in shift]


def test_holm_corrects_as_published():
    """Holm (1979): the smallest p times their number, the next times one less, and never below an earlier one."""
    assert pretrained_tables.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert pretrained_tables.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(("ratio", "pairs"), [(0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5), (8.0, 3), (100.0, 2)])
def test_seeds_needed_are_those_of_tables_of_power(ratio, pairs):
    """Paired t-test, two-sided 5 %, power 0.8: 34 pairs for d = 0.5, 15 for 0.8, 10 for 1 (Cohen 1988), 2 at least."""
    assert pretrained_tables.seeds_needed(deviation=1.0, difference=ratio) == pairs


def test_differences_are_taken_by_pairs_of_seeds_that_every_arm_has():
    some = [one for one in lines() if (one["arm"], one["seed"]) != ("static", 4)]
    found = pretrained_tables.Lines(some)
    assert found.seeds == [0, 1, 2, 3]
    by_hand = [
        next(one["validation_loss"] for one in some if one["arm"] == arm and one["seed"] == 2)
        for arm in ("kcenter", "random")
    ]
    assert found.differences("kcenter", "validation_loss")[2] == pytest.approx(by_hand[0] - by_hand[1])
    assert found.values("kcenter", "t0")[0] == pytest.approx(found.values("kcenter", "validation_loss")[0] / 2)


def test_the_tables_say_what_the_lines_say():
    found = pretrained_tables.Lines(lines())
    text = pretrained_tables.tables(found)
    values = found.differences("static", "validation_loss")
    half = stats.t.ppf(0.975, 4) * values.std(ddof=1) / 5**0.5
    assert f"| static | {values.mean():.3f} ± {half:.3f} |" in text
    assert "5 seeds" in text
    assert text.count("| kcenter |") == 5
    assert "| random | 88.0 | 12.0 |" in text
    assert "| kcenter | 0.0 | 100.0 |" in text


def test_rounds_are_held_against_choosing_at_once():
    found = pretrained_tables.Lines(lines())
    values = found.values("kcenter", "validation_loss") - found.values("one_shot", "validation_loss")
    half = stats.t.ppf(0.975, 4) * values.std(ddof=1) / 5**0.5
    assert f"| one_shot | {values.mean():.3f} ± {half:.3f} |" in pretrained_tables.rounds(found)


def test_the_picture_shows_every_selection_but_random(tmp_path):
    figure = pretrained_tables.picture(pretrained_tables.Lines(lines()))
    figure.savefig(tmp_path / "picture.png")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        arm for arm in run_pretrained.ARMS if arm != "random"
    ]
    assert "kept-out" in right.get_title()


def test_rows_are_short_and_of_sources_that_are_kept_apart():
    kinds = ["gsm8k", "gpteacher-codegen", "t0:ropes_plain_bottom_hint", "t0:common_gen_Example_prompt"]
    rows = [
        {"instruction": f"{i}", "input": "", "output": "x" * (10 if i % 9 else 500), "source": kinds[i % 4]}
        for i in range(4000)
    ]
    drawn = experiment_rows.draw(rows)
    assert drawn == experiment_rows.draw(rows)
    assert max(len(row["output"]) for row in drawn) == 10
    assert {row["group"] for row in drawn[:-200]} == {"gsm8k", "t0:ropes"}
    assert {row["group"] for row in drawn[-200:]} == {"gpteacher-codegen", "t0:common_gen"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bench" / "experiments" / "pretrained").glob("*.yml")), ids=lambda p: p.stem
)
def test_configs_are_valid_and_have_one_budget(path):
    config = load_config(path)
    pools = {"initial": 50, "paper": 1100}
    assert config.init_label_num + config.n_round * config.n_query == pools.get(path.stem, 100)
    if path.stem != "paper":
        assert config.held_out_groups == {"group": list(experiment_rows.HELD_OUT)}


@pytest.mark.slow
def test_arms_share_the_initial_round_and_its_embeddings(tmp_path, monkeypatch, settings, data_file, rows):
    """On a tiny model: what is shared is not computed again, and changes no pick."""
    import yaml

    monkeypatch.setattr(run_pretrained, "OUTPUT", tmp_path / "runs")
    monkeypatch.setattr(run_pretrained, "RESULTS", tmp_path / "lines.jsonl")
    monkeypatch.setattr(run_pretrained, "CONFIGS", tmp_path)
    (tmp_path / "rows.jsonl").write_text(data_file.read_text().replace('"family"', '"group"'))
    for arm in (*run_pretrained.ARMS, "initial"):
        own = yaml.safe_load((ROOT / "bench" / "experiments" / "pretrained" / f"{arm}.yml").read_text())
        own |= settings | {"full_data_path": str(tmp_path / "rows.jsonl")}
        own |= {"held_out_groups": {"group": [rows[0]["family"]]}, "model_max_length": 256}
        own |= {"whiten_n_components": 4} if arm == "whitened" else {}
        own |= {"n_round": {"initial": 0, "random": 0}.get(arm, 1), "keep_embeddings": arm == "kcenter"}
        (tmp_path / f"{arm}.yml").write_text(yaml.safe_dump(own))
    run_pretrained.run_seed(0)
    written = run_pretrained.finished_lines()
    assert [one["arm"] for one in written] == list(run_pretrained.ARMS)
    by_arm = {one["arm"]: one for one in written}
    assert "embed" in by_arm["kcenter"]["rounds"][1]
    assert "embed" not in by_arm["one_shot"]["rounds"][1]
    assert by_arm["one_shot"]["validation_loss"] == by_arm["kcenter"]["validation_loss"]  # the same picks here
    assert not list((tmp_path / "runs").glob("*/*/output"))
    run_pretrained.run_seed(0)
    assert run_pretrained.finished_lines() == written
