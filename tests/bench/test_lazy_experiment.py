"""The experiment on lazy rounds: its replay of a run, its counts and tables."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="needs the checkout")
sys.path.insert(0, str(ROOT / "bench" / "experiments" / "lazy"))

import lazy_tables  # noqa: E402
import run_lazy  # noqa: E402

from diverseevol_fast import kcenter  # noqa: E402
from diverseevol_fast.runs.config import load_config  # noqa: E402


@pytest.fixture(scope="module")
def rounds():
    """Four rounds of 600 rows whose embeddings move a little, and together by more."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 12)) * rng.gamma(2.0, 1.0, (600, 1))
    embeddings = [x.astype(np.float32)]
    pool = rng.permutation(600)[:20].tolist()
    pools = [[], list(pool)]
    for _ in range(4):
        embeddings.append((embeddings[-1] + 1.0 + 0.02 * rng.standard_normal(x.shape)).astype(np.float32))
        pool += kcenter(embeddings[-1], 10, pool).indices.tolist()
        pools.append(list(pool))
    return run_lazy.Rounds(pools, embeddings, np.full(600, 7))


def test_every_round_is_selected_again_from_the_pool_of_the_run(rounds):
    lines = run_lazy.replayed(rounds, 3, bound="residual", multiple=1.5, probe=64)
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["missed"] == 0
        assert line["same_order"]
        assert line["radius_ratio"] == pytest.approx(1.0)
        assert line["share_of_tokens"] == pytest.approx(line["share_embedded"], abs=1e-5)
        assert 0 <= line["share_read"] < line["share_embedded"] <= 1
    assert [len(line["allowances"]) for line in lines] == [1, 1, 2, 3]  # ages 1; 1 and 2; 1, 2, and 3 or 4


def test_movement_and_picks_in_common(rounds):
    lines = run_lazy.movement(rounds)
    for line in lines:
        new = rounds.embeddings[line["round"]]
        expected = np.linalg.norm(new - rounds.embeddings[line["round"] - 1], axis=1).mean()
        assert line["relative_movement"] == pytest.approx(expected / np.linalg.norm(new, axis=1).mean(), rel=1e-5)
        assert line["own_movement"] < 0.1 < line["relative_movement"]
        assert line["in_common_with_last"] >= 8
        assert line["picks"] == 10
    first = kcenter(rounds.embeddings[0], 40, rounds.pools[1]).indices
    last = [*rounds.pools[4][20:], *rounds.full[4].indices.tolist()]
    assert lines[3]["in_common_with_base_at_once"] == len(set(first.tolist()) & set(last))


def line(missed=0, **values) -> dict:
    groups = {"share_embedded": 0.3, "share_read": 0.1, "radius_ratio": 1.0, "audits": [True]}
    return {"arm": "full", "seed": 0, "round": 2, "draw": 0, "missed": missed} | groups | values


def test_a_round_counts_as_equal_where_every_draw_was():
    lines = [line(), line(1, draw=1), line(round=3), line(round=3, draw=1), line(seed=1), line(arm="lora")]
    assert lazy_tables.equal_rounds(lines) == (3, 4)


@pytest.mark.parametrize(
    ("equal", "count", "text"),
    [(10, 10, "10 of 10 (69% to 100%)"), (0, 10, "0 of 10 (0% to 31%)"), (9, 10, "9 of 10 (55% to 100%)")],
)
def test_intervals_of_shares_are_those_of_tables(equal, count, text):
    """Clopper and Pearson (1934): 10 of 10 gives 0.6915 to 1, 9 of 10 0.5550 to 0.9975."""
    assert lazy_tables.share_interval(equal, count) == text


def test_the_tables(rounds):
    shared = {"arm": "full", "seed": 0, "rows": 600}
    lines = [{"experiment": "movement"} | shared | line for line in run_lazy.movement(rounds)]
    for bound, multiple, probe in (("residual", 1.5, 256), ("drift", 1.1, 64)):
        found = run_lazy.replayed(rounds, 0, bound=bound, multiple=multiple, probe=probe)
        lines += [{"experiment": "lazy"} | shared | line for line in found]
    tables = lazy_tables.tables(lines)
    assert "| all weights, 2e-5 | 4 | 1 of 1 (2% to 100%) | 0 in 1 selections |" in tables["lazy rounds"]
    assert "| residual x 1.5 | 256 | 4 of 4" in tables["lazy rounds"]
    assert tables["lazy rounds"].index("| residual x") < tables["lazy rounds"].index("| drift x 1.1 | 64 | 4 of 4")
    assert " of 40 |" in tables["evolving embeddings"]


def test_the_configs_differ_in_what_their_first_lines_say():
    configs = {arm: load_config(run_lazy.CONFIGS / f"{arm}.yml") for arm in run_lazy.ARMS}
    assert all(config.keep_embeddings for config in configs.values())
    assert {arm: config.n_round for arm, config in configs.items() if config.n_round != 3} == {"ten": 9}
    assert all(config.val_set_size == 0 for config in configs.values())  # all rows are candidates
    rates = {arm: config.train_args["learning_rate"] for arm, config in configs.items()}
    assert rates == {"full": 2e-5, "lora": 1e-4, "high": 1e-4, "quickstart": 2e-3, "ten": 2e-5}
    assert [arm for arm, config in configs.items() if config.peft] == ["lora"]
