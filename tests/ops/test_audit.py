"""The audit: float64 distances from below; a running selection finds bounds that are too low.

The CPU stands in for a GPU: `asynchronous` makes a selection take the path on which it does not wait.
"""

import numpy as np
import pytest
import torch
from support.gpu import DEVICE, DTYPES
from support.problems import KINDS, make

from diverseevol_fast import KCenterStream, kcenter
from diverseevol_fast.ops import audit, backends, reference
from diverseevol_fast.selection import bounds
from diverseevol_fast.selection import device_rows as rows_module

needs_native = pytest.mark.skipif(backends.native_unavailable() is not None, reason="the reference is not audited")


@pytest.fixture
def asynchronous(monkeypatch):
    monkeypatch.setattr(rows_module, "is_synchronous", lambda device: False)


@pytest.fixture
def drawn(monkeypatch):
    """The audit draws from these seeds, one after the other, instead of at random."""
    default_rng = np.random.default_rng
    seeds = iter(range(10**9))
    monkeypatch.setattr(bounds.np.random, "default_rng", lambda *seed: default_rng(*(seed or [next(seeds)])))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_from_below_is_below_and_close(kind, dtype, offset):
    x = torch.from_numpy(make(kind, 90, 33, 4, 1.0, offset)).to(DEVICE, dtype)
    centers = x[::3].float()
    exact = torch.stack([reference.sqdist_to(x, center) for center in centers]).amin(dim=0)
    below = audit.sqdist_from_below(x, centers, x.float().mean(dim=0))
    assert (below <= exact).all()
    spread = (x.double() - x.double().mean(dim=0)).square().sum(dim=1).max()
    assert (exact - below <= 1e-12 * spread).all()


def test_from_below_in_parts(monkeypatch):
    x, centers = torch.randn(50, 7), torch.randn(9, 7)
    whole = audit.sqdist_from_below(x, centers, x.mean(dim=0))
    monkeypatch.setattr(audit, "CHUNK_ELEMENTS", 40)
    torch.testing.assert_close(audit.sqdist_from_below(x, centers, x.mean(dim=0)), whole, rtol=1e-12, atol=1e-12)
    assert audit.sqdist_from_below(x[:0], centers, x.mean(dim=0)).shape == (0,)


def test_from_below_of_large_and_tiny_values():
    for scale in (1e-30, 1e18, 1e37):
        x = torch.randn(40, 9) * scale
        exact = torch.stack([reference.sqdist_to(x, center) for center in x[:5]]).amin(dim=0)
        assert (audit.sqdist_from_below(x, x[:5], x.mean(dim=0)) <= exact).all()


def test_the_first_violation():
    below = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    infinity = float("inf")
    for bound, place in (
        ([1.0, 2.0, 3.0, 4.0], -1),
        ([1.0, 1.9, 3.0, 3.0], 1),
        ([infinity, infinity, -infinity, 4.0], -1),
        ([-infinity, 2.0, 2.5, -infinity], 2),
    ):
        assert audit.first_violation(torch.tensor(bound), below).tolist() == [place]


def plant(monkeypatch, wrong, op="min_sqdist", least_rows=1):
    """A kernel that lowers the bounds of some rows too far, of those in the mask wrong(indices)."""
    run = backends.run

    def faulty(name, called, device, *given):
        found = run(name, called, device, *given)
        if called == op and name == "native":
            bound = given[3] if op == "min_sqdist" else given[7]
            rows = torch.arange(len(bound)) if op == "pool_min_sqdist" or given[4] is None else given[4]
            if len(rows) >= least_rows:
                rows = rows[wrong(rows)]
                bound[rows] = torch.where(bound[rows].isfinite(), 0.5 * bound[rows], bound[rows])
        return found

    monkeypatch.setattr(backends, "run", faulty)


@needs_native
@pytest.mark.parametrize("rate", [100, 10_000])
def test_a_kernel_that_lowers_some_bounds_too_far_is_caught(asynchronous, drawn, monkeypatch, rate):
    """One bound in 10,000 is found in a tenth of all selections: 1 - (1 - 1e-4)^1024; one in 100 in the first."""
    x = make("gaussian", 20_000, 16, 1, 1.0, 2.0)
    plant(monkeypatch, lambda rows: rows % rate == 7)
    said = []
    for _ in range(1 if rate == 100 else 60):
        try:
            kcenter(x, 5, list(range(20)), block_size=64)
        except audit.BoundViolationError as error:
            said.append(str(error))
    assert said
    assert all("'native' on the CPU: the bound of row" in text for text in said)
    assert all(int(text.split("row ")[1].split(" ")[0]) % rate == 7 for text in said)
    if rate == 10_000:  # a binomial's share, at most four standard deviations above
        assert len(said) / 60 < 0.098 + 4 * (0.098 * 0.902 / 60) ** 0.5


@needs_native
def test_a_fault_in_the_refined_rows_alone_is_caught(asynchronous, drawn, monkeypatch):
    """The first screen cannot show the faults of a kernel for chosen rows and many centers."""
    x = make("gaussian", 20_000, 16, 1, 1.0, 2.0)
    run = backends.run

    def faulty(name, op, device, *given):
        found = run(name, op, device, *given)
        if op == "min_sqdist" and given[4] is not None:
            given[3][given[4][::20]] *= 0.5
        return found

    monkeypatch.setattr(backends, "run", faulty)
    with pytest.raises(audit.BoundViolationError):
        kcenter(x, 5, list(range(200)), block_size=64)


@needs_native
@pytest.mark.parametrize("waits", [False, True])
def test_the_reference_goes_on(monkeypatch, drawn, waits):
    if not waits:
        monkeypatch.setattr(rows_module, "is_synchronous", lambda device: False)
    monkeypatch.setattr(bounds, "AUDIT_WORK", 1)
    monkeypatch.setattr(bounds, "AUDIT_SHARE", 4)
    x = make("gaussian", 4_000, 64, 1, 1.0, 2.0)
    expected, sqdist = reference.kcenter(torch.from_numpy(x), 8, [3, 5])
    plant(monkeypatch, lambda rows: rows % 2 == 0, least_rows=1_000)
    with pytest.raises(audit.BoundViolationError):
        kcenter(x, 8, [3, 5], block_size=64)
    with pytest.warns(UserWarning, match="Going on with the reference"):
        result = kcenter(x, 8, [3, 5], block_size=64, on_violation="reference")
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist
    assert result.backend == "reference"


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("earlier", [0, 3])
def test_a_stream_goes_on_with_the_reference(monkeypatch, asynchronous, drawn, dtype, earlier):
    x = torch.from_numpy(make("gaussian", 1_000, 24, 3, 1.0, 1.0)).to(dtype)
    pool, expected = list(range(0, 40)), None
    expected, sqdist = reference.kcenter(x, 12, pool)

    def stream(on_violation: str) -> KCenterStream:
        made = KCenterStream(x[:40], len(x), store=x.clone(), exclude=pool, on_violation=on_violation)
        made.bound_embeddings(x[40:], rows=range(40, len(x)))
        return made

    for on_violation in ("raise", "reference"):
        candidates = stream(on_violation)
        first = candidates.select(earlier)
        # A fault of memory, say, after some picks: all bounds but those of the farthest rows.
        candidates._bounds.bound[~torch.isin(torch.arange(len(x)), torch.tensor(expected[:4]))] *= 0.2
        if on_violation == "raise":
            with pytest.raises(audit.BoundViolationError):
                candidates.select(12 - earlier)
        else:
            with pytest.warns(UserWarning, match="Going on with the reference"):
                second = candidates.select(12 - earlier)
            assert [*first.indices, *second.indices] == expected
            assert [*first.sqdist, *second.sqdist] == sqdist


def test_on_violation_is_checked():
    x = np.zeros((5, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="on_violation: expected 'raise' or 'reference', got 'ignore'"):
        kcenter(x, 1, [0], on_violation="ignore")
    with pytest.raises(ValueError, match="on_violation"):
        KCenterStream(x, 5, on_violation=None)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_right_bounds_pass(monkeypatch, asynchronous, kind, dtype):
    """Every block audits all rows."""
    monkeypatch.setattr(bounds, "AUDITED_REFINED", 1 << 20)
    x = torch.from_numpy(make(kind, 600, 24, 1, 1.0, 5.0)).to(dtype)
    pool = list(range(50))
    expected, _ = reference.kcenter(x, 40, pool)
    assert kcenter(x, 40, pool, block_size=16).indices.tolist() == expected


@needs_native
def test_on_a_cpu_small_work_is_not_audited(monkeypatch):
    monkeypatch.setattr(audit, "sqdist_from_below", lambda *given: pytest.fail("was audited"))
    kcenter(make("gaussian", 3_000, 64, 1, 1.0, 2.0), 5, list(range(20)), block_size=64)


@needs_native
def test_pick_block_refuses_a_bound_that_is_below_the_distance():
    """It used to crash on the argmax of no rows."""
    from diverseevol_fast.ops import pick_block

    x = torch.from_numpy(make("gaussian", 40, 16, 3, 1.0, 0.0))
    bound = torch.full((30,), float("inf"))
    bound[4] = 0.01
    with pytest.raises(audit.BoundViolationError, match="pick_block: the bound of a row is below its squared distance"):
        pick_block(x[10:], x[:10], x.mean(dim=0), bound, -1.0, -1.0, 5, backend="native")
    bound[4] = -float("inf")  # a row that is a center
    picks, _, _ = pick_block(x[10:], x[:10], x.mean(dim=0), bound, -1.0, -1.0, 30, backend="native")
    assert 4 not in picks.tolist()


@needs_native
def test_on_a_cpu_large_work_is_audited(monkeypatch):
    audited = []
    from_below = audit.sqdist_from_below
    monkeypatch.setattr(audit, "sqdist_from_below", lambda x, *given: audited.append(len(x)) or from_below(x, *given))
    monkeypatch.setattr(bounds, "AUDIT_WORK", 1 << 20)
    kcenter(make("gaussian", 9_000, 64, 1, 1.0, 2.0), 5, list(range(20)), block_size=64)
    assert audited[0] == 9_000 // bounds.AUDIT_SHARE
