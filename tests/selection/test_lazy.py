"""Lazy rounds: the picks of greedy on all new embeddings, while most rows are only predicted."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.problems import problems

from diverseevol_fast import kcenter
from diverseevol_fast.ops import reference
from diverseevol_fast.selection import device_rows, host_rows, lazy_bounds
from diverseevol_fast.selection.device_rows import DeviceRows, choose_backends
from diverseevol_fast.selection.lazy import LazyTraversal
from diverseevol_fast.selection.lazy_bounds import LazyGreedy


def moved(old: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """New embeddings of rows [N, D]: all move together, unless `kind` is "none", and each by itself."""
    rng = np.random.default_rng(seed)
    n, dim = old.shape
    own = rng.standard_normal((n, dim))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    size = {
        "none": np.zeros(n),
        "bounded": np.full(n, 0.1),
        "heavy-tailed": 0.02 * rng.standard_t(1.5, n),
        "adversarial": np.where(rng.random(n) < 0.01, 30.0, 0.01),  # a few rows jump
    }[kind]
    return old if kind == "none" else (old + 0.2 + own * size[:, None]).astype(np.float32)


class Embedder:
    """The function that embeds; it remembers what it was asked for."""

    def __init__(self, new: np.ndarray):
        self.new, self.calls = new, []

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        assert indices.dtype == np.int64
        self.calls.append(indices.copy())
        return self.new[indices]

    @property
    def asked(self) -> np.ndarray:
        return np.concatenate(self.calls)


def exceeds(lazy: LazyTraversal, result, new: np.ndarray, pool: list[int]) -> bool:
    """Whether a row that was not embedded is farther than its bound before some pick, in float64."""
    unread = np.flatnonzero(~result.embedded)
    if not len(unread):
        return False
    true, predicted = torch.from_numpy(new[unread]), lazy.values[unread]
    values = torch.from_numpy(new)
    nearest = [torch.full((len(unread),), float("inf"), dtype=torch.float64) for _ in range(2)]
    allowances = lazy._allowances[lazy._group[unread]]
    for step, center in enumerate([*pool, *result.indices[:-1].tolist()]):
        for i, rows in enumerate((true, predicted)):
            nearest[i] = torch.minimum(nearest[i], reference.sqdist_to(rows, values[center]))
        beyond = nearest[0].sqrt() > nearest[1].sqrt() + torch.from_numpy(allowances)
        if step >= len(pool) - 1 and bool(beyond.any()):
            return True
    return False


def rows(n: int, dim: int, seed: int) -> np.ndarray:
    """Rows at very different distances from the others, as embeddings are."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dim)) * rng.gamma(2.0, 1.0, (n, 1))).astype(np.float32)


# The specification


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from([0.0, 0.3, 10.0]), st.integers(0, 100))
def test_the_specification_is_greedy_where_no_row_exceeds_the_allowance(problem, allowance, seed):
    new, k, pool, _ = problem
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(new.shape)
    length = np.linalg.norm(direction, axis=1, keepdims=True)
    old = torch.from_numpy(new.astype(np.float64) + 0.99 * allowance * rng.random((len(new), 1)) * direction / length)
    picks, sqdist, read = reference.lazy_kcenter(old, torch.from_numpy(new), k, pool, allowance)
    assert (picks, sqdist) == reference.kcenter(torch.from_numpy(new), k, pool)
    assert len(set(read)) == len(read)
    assert not set(read) & set(pool)
    assert set(picks) <= set(read)


def test_the_specification_reads_no_row_that_cannot_be_picked():
    new = torch.tensor([[0.0], [10.0], [8.0], [1.0], [5.0]])
    picks, sqdist, read = reference.lazy_kcenter(new, new, 2, [0], 0.5)
    assert (picks, sqdist) == ([1, 4], [100.0, 25.0])
    assert read == [1, 4]  # row 2 is 8 from row 0, and only 2 from row 1; row 3 is near
    assert reference.lazy_kcenter(new, new, 2, [0], 2.5)[2] == [1, 2, 4]


# The implementation against it


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("seed", range(6))
def test_one_row_at_a_time_reads_the_rows_of_the_specification(seed, backend, monkeypatch):
    monkeypatch.setattr(lazy_bounds, "SMALLEST_ASKED", 1)
    n, pool = 90, [3, 50, 7]
    old = rows(n, 6, seed)
    new = moved(old, "heavy-tailed", seed)  # rows exceed the allowance: the picks are then those of the specification
    predicted = old + np.float32(0.2)
    expected = reference.lazy_kcenter(torch.from_numpy(predicted), torch.from_numpy(new), 12, pool, 0.05)
    values, read = torch.from_numpy(predicted.copy()), list(pool)
    while True:
        values[read] = torch.from_numpy(new)[read]
        allowance = torch.full((n,), 0.05, dtype=torch.float64)
        allowance[read] = -1.0
        backends_chosen = choose_backends(values.device, backend, values.dtype)
        greedy = LazyGreedy(DeviceRows(values, backends_chosen), values[pool], allowance)
        greedy.bounds.exclude(torch.tensor(pool))
        asked = greedy.run_lazily(12, most_embedded=n)
        if not len(asked):
            break
        read.append(next(iter(asked.tolist())))
    assert (greedy.picks, greedy.sqdist, read[len(pool) :]) == expected


def check(old, new, pool, k, **kwargs):
    """Select; unless a row that was left out exceeds the allowance, the picks must be those of greedy."""
    embedder = Embedder(new)
    lazy = LazyTraversal(old, embedder, pool, **kwargs)
    result = lazy.select(k)
    assert len(np.unique(embedder.asked)) == len(embedder.asked) == result.embedded.sum()
    assert np.array_equal(np.flatnonzero(result.embedded), np.sort(embedder.asked))
    assert np.array_equal(lazy.values.numpy()[result.embedded], new[result.embedded])
    expected = kcenter(new, k, pool)
    holds = not exceeds(lazy, result, new, pool)
    if holds:
        assert np.array_equal(result.indices, expected.indices)
        assert np.array_equal(result.sqdist, expected.sqdist)
    return result, holds


@pytest.mark.parametrize("bound", ["residual", "drift"])
@pytest.mark.parametrize("kind", ["none", "bounded", "heavy-tailed", "adversarial"])
def test_picks_are_those_of_greedy_where_no_row_exceeds_the_allowance(kind, bound):
    held = []
    for seed in range(25):
        old = rows(800, 12, seed)
        pool = np.random.default_rng(seed).permutation(800)[:40].tolist()
        result, holds = check(old, moved(old, kind, seed), pool, 30, bound=bound, probe=60, audit=60, seed=seed)
        held.append(holds)
        assert all(group.largest_seen <= group.allowance for group in result.groups)
        assert result.embedded.all() or result.audits[-1].passed
    assert sum(held) >= {"none": 25, "bounded": 25, "heavy-tailed": 3, "adversarial": 5}[kind]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from(["none", "bounded", "heavy-tailed", "adversarial"]), st.integers(0, 100))
def test_rows_of_every_kind(problem, kind, seed):
    old, k, pool, _ = problem
    new = moved(old, kind, seed)
    assume(np.isfinite(new).all())
    audit = seed % 7
    others = len(old) - len(pool)
    check(old, new, pool, k, probe=1 + seed % others, audit=audit, seed=seed, bound=["residual", "drift"][seed % 2])


def test_ties_beyond_a_block(monkeypatch):
    """Thousands of duplicates: all rows are embedded, and the classical loop picks the lowest of them."""
    monkeypatch.setattr(lazy_bounds, "LARGEST_BLOCK", 64)
    old = np.repeat(rows(4, 5, 0), 100, axis=0)
    result, holds = check(old, moved(old, "none", 0), [0], 50, probe=10, audit=0)
    assert holds
    assert result.embedded.all()


@pytest.mark.parametrize("on_device", [True, False])
def test_rows_of_a_device_that_the_host_does_not_wait_for(monkeypatch, on_device):
    monkeypatch.setattr(host_rows, "is_on", lambda x, device: on_device)
    monkeypatch.setattr(device_rows, "is_synchronous", lambda device: False)
    old = rows(600, 12, 1)
    _, holds = check(old, moved(old, "bounded", 1), [5, 9], 20, probe=50, audit=50)
    assert holds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_old_embeddings_of_other_dtypes(dtype):
    old = rows(500, 12, 1)
    result, holds = check(torch.from_numpy(old).to(dtype), moved(old, "bounded", 1), [5, 9], 20, probe=50, audit=50)
    assert holds
    assert not result.embedded.all()


def test_the_common_movement_is_taken_out():
    old = rows(1000, 16, 3)
    new = old + np.float32(5.0)  # far more than rows are apart
    result, holds = check(old, new, [*range(20)], 20, probe=64, audit=64)
    assert holds
    assert result.groups[0].allowance < 1e-3
    assert result.embedded.sum() < 64 + 64 + 64 + 64 + 20


def test_the_same_seed_reads_the_same_rows():
    old = rows(1000, 16, 3)
    new = moved(old, "heavy-tailed", 3)
    calls = []
    for seed in (7, 7, 8):
        embedder = Embedder(new)
        LazyTraversal(old, embedder, [1, 2], seed=seed, probe=64, audit=64).select(30)
        calls.append(embedder.asked.tolist())
    assert calls[0] == calls[1] != calls[2]


def test_large_movements_embed_all_rows_in_few_calls():
    old, new = rows(2000, 16, 4), rows(2000, 16, 5)
    embedder = Embedder(new)
    result = LazyTraversal(old, embedder, [1, 2, 3], probe=64, audit=64).select(100)
    assert result.embedded.all()
    assert result.guarantee.startswith("All rows were embedded")
    assert np.array_equal(result.indices, kcenter(new, 100, [1, 2, 3]).indices)
    assert len(embedder.calls) <= 4


@pytest.mark.slow
def test_an_audit_finds_violators_as_often_as_its_size_says():
    """20 of 1,000 rows that seem near the pool jump far away; a probe of two rows knows nothing of them."""
    n, violators, audit, draws = 1000, 20, 64, 150
    old = np.random.default_rng(0).normal(scale=0.01, size=(n, 8)).astype(np.float32)
    old[n - 60 :] += rows(60, 8, 0)  # those that seem far
    new = old.copy()
    pool = [0, 1]
    new[100 : 100 + violators] += 50 * rows(violators, 8, 9)
    found, unread = 0, 0
    for seed in range(draws):
        embedder = Embedder(new)
        result = LazyTraversal(old, embedder, pool, probe=2, audit=audit, seed=seed).select(10)
        unread = result.audits[0].drawn_from if result.audits else 0
        first = embedder.calls[0]
        if np.isin(np.arange(100, 100 + violators), first).any():  # the probe has met one already
            draws -= 1
            continue
        found += not result.audits[0].passed
        if not result.audits[0].passed:  # what it found widens the allowance until all of them are embedded
            assert np.array_equal(result.indices, kcenter(new, 10, pool).indices)
    expected = 1 - np.prod([(unread - violators - i) / (unread - i) for i in range(audit)])
    assert abs(found / draws - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


def test_the_guarantee_says_what_was_measured():
    old = rows(1000, 16, 3)
    result, _ = check(old, moved(old, "bounded", 3), [*range(70)], 20, probe=99, audit=50)
    text = result.guarantee
    limit = f"by more than {result.groups[0].allowance:.4g} (embedded in the round before)"
    assert f"{limit}: 1.5 times the largest residual of 99 rows drawn at random" in text
    last = result.audits[-1]
    assert f"Of {last.drawn_from} rows" in text
    assert f"{1 - 0.05 ** (1 / 50):.2%}" == "5.82%"
    assert "5.82%" in text
    drift, _ = check(old, moved(old, "bounded", 3), [*range(70)], 20, probe=99, audit=0, bound="drift")
    assert "is farther from its predicted embedding than" in drift.guarantee
    assert "were drawn and embedded" not in drift.guarantee
    assert drift.share_embedded == drift.embedded.mean()


def test_rows_of_other_ages_have_their_own_allowance():
    """Rows that were embedded three rounds ago have moved five times as far."""
    old = rows(2000, 16, 3)
    ages = np.ones(2000, dtype=np.int64)
    ages[1000:] = np.random.default_rng(0).choice([3, 4], 1000)
    own = np.random.default_rng(1).standard_normal(old.shape).astype(np.float32)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    new = (old + own * np.where(ages > 1, 0.5, 0.1)[:, None]).astype(np.float32)
    result, holds = check(old, new, [*range(900, 1000)], 20, probe=128, audit=64, ages=ages, bound="drift")
    assert holds
    young, aged = result.groups
    assert (young.ages, young.rows, young.probe) == ((1, 1), 900, 64)
    assert (aged.ages, aged.rows, aged.probe) == ((3, 4), 1000, 64)
    assert 0.05 < young.allowance < 0.2 < aged.allowance < 0.8
    limits = f"{young.allowance:.4g} (embedded in the round before), {aged.allowance:.4g} (embedded 3 to 4 rounds ago)"
    assert f"{limits}: 1.1 times the largest drift of 64, 64 rows" in result.guarantee
    assert f"{young.allowance:.4g}, {aged.allowance:.4g}" in repr(result)
    together, _ = check(old, new, [*range(900, 1000)], 20, probe=128, audit=64, bound="drift")
    assert result.embedded.sum() < together.embedded.sum()


def test_every_group_has_a_row_in_the_probe():
    old = rows(500, 8, 3)
    ages = np.repeat([1, 2, 3, 5, 9], 100)
    result, _ = check(old, moved(old, "bounded", 3), [100], 20, probe=2, audit=20, ages=ages)
    assert len(result.groups) == 5
    assert all(group.probe >= 1 for group in result.groups)


def test_a_group_that_is_smaller_than_its_part_of_the_probe():
    old = rows(500, 8, 3)
    ages = np.ones(500, dtype=np.int64)
    ages[:7] = 2
    result, holds = check(old, moved(old, "bounded", 3), [100], 20, probe=60, audit=20, ages=ages)
    assert [group.probe for group in result.groups] == [53, 7]
    assert holds


# Bad input


def lazy(old=None, embed=None, centers=(0,), **kwargs):
    old = rows(50, 4, 0) if old is None else old
    return LazyTraversal(old, embed or (lambda indices: np.asarray(old)[indices]), centers, probe=5, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"old": np.full((9, 2), np.nan, np.float32)}, "old: row 0 holds a value that is not finite"),
        ({"embed": 3}, "embed: expected a function"),
        ({"centers": []}, "centers: expected at least one row"),
        ({"centers": [50]}, "centers: expected row numbers from 0 to 49"),
        ({"bound": "certain"}, "bound: expected 'residual' or 'drift', got 'certain'"),
        ({"multiple": 0.5}, "multiple: expected 1 to"),
        ({"multiple": float("nan")}, "multiple: expected 1 to"),
        ({"multiple": "2"}, "multiple: expected a number"),
        ({"ages": np.zeros(50, int)}, "ages: expected at least 1, got 0"),
        ({"ages": np.ones(49, int)}, "ages: expected 50 integers, got int64 of shape"),
        ({"ages": np.ones(50)}, "ages: expected integers, got dtype float64"),
        ({"audit": -1}, "audit: expected at least 0"),
        ({"audit": 1.5}, "audit: expected a number of rows"),
        ({"seed": -1}, "seed: expected at least 0"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lazy(**kwargs)


def test_a_probe_larger_than_the_candidates():
    old = rows(50, 4, 0)
    with pytest.raises(ValueError, match="probe: expected at most 48, the rows that are not centers, got 49"):
        LazyTraversal(old, lambda indices: old[indices], [0, 1], probe=49)
    with pytest.raises(ValueError, match="probe: expected at least 1, got 0"):
        LazyTraversal(old, lambda indices: old[indices], [0, 1], probe=0)


def test_embeddings_of_another_width_or_number_or_not_finite():
    old = rows(50, 4, 0)
    with pytest.raises(ValueError, match=r"embed: expected embeddings of shape \(\d+, 4\), as wide as old, got"):
        lazy(old, lambda indices: np.zeros((len(indices), 5), np.float32)).select(3)
    with pytest.raises(ValueError, match="embed: expected embeddings of shape"):
        lazy(old, lambda indices: old[:1]).select(3)
    bad = old.copy()
    bad[0] = np.nan
    with pytest.raises(ValueError, match="embed: the embedding of row 0 is not finite"):
        lazy(old, lambda indices: bad[indices]).select(3)


def test_select_is_called_once_and_k_is_checked():
    selection = lazy()
    with pytest.raises(ValueError, match="k: expected 0 to 49"):
        selection.select(50)
    assert len(selection.select(49).indices) == 49
    with pytest.raises(ValueError, match="select: has picked already"):
        selection.select(1)
