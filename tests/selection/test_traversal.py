"""The block-exact traversal: the picks of the float64 specification, whatever data, dtype, ISA, method or block."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.problems import DTYPES, KINDS, make, problems

from diverseevol_fast import KCenterStream, kcenter
from diverseevol_fast.ops import backends, min_sqdist, pick_block, reference, update_argmax
from diverseevol_fast.selection import bounds, traversal

ISAS = []
if backends.native_unavailable() is None:
    from diverseevol_fast import _native

    ISAS = _native.usable_isas()
BACKENDS = [*(["native"] if ISAS else []), "reference"]


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from(DTYPES), st.sampled_from(ISAS or ["none"]), st.sampled_from(["block", "streaming"]))
def test_same_picks_as_the_specification(problem, dtype, isa, method):
    array, k, centers, block = problem
    x = torch.from_numpy(array).to(dtype)
    if not torch.isfinite(x).all():
        return
    expected, sqdist = reference.kcenter(x, k, centers)
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch:
            if ISAS:
                patch.setenv("DIVERSEEVOL_ISA", isa)
            result = kcenter(x, k, centers, backend=backend, method=method, block_size=block)
        assert result.indices.tolist() == expected
        assert result.sqdist.tolist() == sqdist


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.integers(1, 12), st.integers(1, 6))
def test_small_limits_make_no_difference(problem, largest_block, first_centers):
    """Blocks that cannot grow, so that ties end in streaming; and a first screen that leaves out most centers."""
    array, k, centers, block = problem
    x = torch.from_numpy(array)
    expected, _ = reference.kcenter(x, k, centers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traversal, "LARGEST_BLOCK", largest_block)
        patch.setattr(bounds, "FIRST_CENTERS", first_centers)
        assert kcenter(x, k, centers, block_size=min(block or 5, largest_block)).indices.tolist() == expected
        rest = [row for row in range(len(x)) if row not in centers]
        candidates = KCenterStream(x[centers], len(rest))
        candidates.push_embeddings(x[rest])
        found = [*candidates.select(k // 2).indices, *candidates.select(k - k // 2).indices]
        assert [rest[row] for row in found] == expected


def test_more_ties_than_a_block_holds():
    x = torch.zeros(4500, 6)
    x[::2, 0] = 1
    expected, sqdist = reference.kcenter(x, 5, [1])
    result = kcenter(x, 5, [1], block_size=64)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist
    assert result.passes > 5  # streamed


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(700, 300, 90, 40), (1100, 65, 1, 300)])
def test_larger_problems(isa, kind, shape, monkeypatch):
    """More rows than a tile, a panel and a block."""
    monkeypatch.setenv("DIVERSEEVOL_ISA", isa)
    n, d, m, k = shape
    x = torch.from_numpy(make(kind, n, d, 5, 1.0, 3.0))
    centers = np.random.default_rng(0).choice(n, m, replace=False).tolist()
    expected, sqdist = reference.kcenter(x, k, centers)
    result = kcenter(x, k, centers, block_size=512)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 150])
def test_every_block_size_gives_the_same(block):
    x = torch.from_numpy(make("near-duplicates", 150, 20, 1, 1.0, 0.0))
    assert kcenter(x, 149, [3], block_size=block).indices.tolist() == reference.kcenter(x, 149, [3])[0]


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e19, 1e38])
def test_values_whose_squares_leave_float32(scale):
    x = torch.from_numpy(make("gaussian", 60, 9, 2, 1.0, 0.0).clip(-2.5, 2.5) * np.float32(scale))
    for block in (None, 7):
        assert kcenter(x, 30, [0], block_size=block).indices.tolist() == reference.kcenter(x, 30, [0])[0]


def test_radius():
    x = torch.from_numpy(make("gaussian", 300, 12, 3, 1.0, 0.0))
    indices, sqdist = reference.kcenter(x, 299, [0])
    for radius in (0.0, sqdist[0] ** 0.5 + 1, sqdist[40] ** 0.5 + 1e-9, sqdist[120] ** 0.5 - 1e-9):
        count = sum(value > radius**2 for value in sqdist)
        for how in ({"block_size": 32}, {"method": "streaming"}, {}):
            assert kcenter(x, None, [0], radius=radius, **how).indices.tolist() == indices[:count]
            assert kcenter(x, 20, [0], radius=radius, **how).indices.tolist() == indices[: min(20, count)]
    same = torch.ones(50, 3)
    assert kcenter(same, None, [0], radius=0.0).indices.tolist() == []
    assert len(kcenter(x, None, [0], radius=0.0).indices) == 299
    with pytest.raises(ValueError, match="k: expected a number of rows, or None with a radius"):
        kcenter(x, None)
    with pytest.raises(ValueError, match="radius: expected a finite distance"):
        kcenter(x, None, radius=-1.0)


def test_passes_are_few_and_counted():
    x = make("gaussian", 20_000, 64, 0, 1.0, 0.0)
    assert 1 < kcenter(x, 100, list(range(100))).passes < 1.2
    assert kcenter(x[:4000], 100, list(range(100)), method="streaming").passes == 199


def test_passes_are_few_where_the_first_centers_say_nothing():
    """Fifty clusters: most rows are far from all centers of the first screen, and are read a second time."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((50, 64))[rng.integers(0, 50, 4000)] + 0.1 * rng.standard_normal((4000, 64))).astype("f4")
    x[rng.choice(4000, 150, replace=False)] *= 2
    assert kcenter(x, 100, list(range(100))).passes < 2.3
    assert kcenter(x, 1000, [0]).passes < 10


def test_dlpack_and_other_arguments():
    class Wrapped:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, **kwargs):
            return self.x.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    x = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    for block in (None, 4):
        found = kcenter(Wrapped(x), 5, [1], block_size=block).indices.tolist()
        assert found == kcenter(x, 5, [1]).indices.tolist()
    assert kcenter(x, 0, block_size=4).indices.tolist() == []
    for wrong, words in (({"method": "fast"}, "method: expected"), ({"block_size": 0}, "block_size: expected")):
        with pytest.raises(ValueError, match=words):
            kcenter(x, 3, **wrong)
    with pytest.raises(ValueError, match="expected 'auto' or one of"):
        kcenter(x, 3, backend="opencl")
    assert kcenter(x[::-1], 5, [38]).indices.tolist() == (39 - kcenter(x, 5, [1]).indices).tolist()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 2), (97, 33, 33), (200, 130, 5), (13, 1025, 70)])
def test_bounds_are_never_below_the_distance_and_close(isa, dtype, size, monkeypatch):
    monkeypatch.setenv("DIVERSEEVOL_ISA", isa)
    n, d, m = size
    x = torch.from_numpy(make("gaussian", n, d, 7, 1.0, 20.0)).to(dtype)
    centers = torch.from_numpy(make("gaussian", m, d, 8, 1.0, 20.0))
    exact = torch.full((n,), float("inf"))
    reference.min_sqdist(x, centers, exact)
    bound = torch.full((n,), float("inf"))
    bound[n // 2] = -float("inf")
    min_sqdist(x, centers, x.float().mean(dim=0), bound, backend="native")
    assert bound[n // 2] == -float("inf")
    rest = torch.arange(n) != n // 2
    assert (bound[rest] >= exact[rest]).all()
    if d > 1:
        assert (bound[rest] <= exact[rest] + 0.05 * exact.abs().max() + 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_update_argmax(backend):
    x = torch.from_numpy(make("duplicates", 130, 33, 2, 1.0, 0.0))
    nearest = torch.full((130,), float("inf"), dtype=torch.float64)
    nearest[5] = -1.0
    expected = nearest.clone()
    assert update_argmax(x, x[5], nearest, backend=backend) == reference.update_argmax(x, x[5], expected)
    assert torch.equal(nearest, expected)
    assert nearest[5] == -1.0
    wide = torch.zeros(130, 66)
    wide[:, ::2] = x
    again = torch.full((130,), float("inf"), dtype=torch.float64)
    again[5] = -1.0
    update_argmax(wide[:, ::2], x[5], again, backend=backend)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("d", [40, 80])
def test_the_screen_names_the_first_bad_row(backend, d):
    wide = torch.from_numpy(make("gaussian", 500, 80, 1, 1.0, 0.0))
    x = wide[:, :: 80 // d] if d == 40 else wide
    x[400, 3] = x[131, 7] = float("nan")
    bound = torch.full((500,), float("inf"))
    for rows in (None, torch.arange(100, 480)):
        with pytest.raises(ValueError, match="row 131 "):
            min_sqdist(x, x[:40].contiguous(), x[0].contiguous(), bound, rows, backend=backend)


def test_what_the_screen_refuses():
    x, c, o, b = torch.randn(9, 5), torch.randn(2, 5), torch.randn(5), torch.full((9,), float("inf"))
    for arguments, error, words in (
        ((x, c[:, :4], o, b), ValueError, r"centers: expected shape \[M, 5\]"),
        ((x, c[:0], o, b), ValueError, "M at least 1"),
        ((x, c.double(), o, b), TypeError, "centers: expected float32"),
        ((x, c, o[:4], b), ValueError, "offset: expected shape"),
        ((x, c, o, b[:8]), ValueError, "bound: expected shape"),
        ((x, c, o, torch.zeros(18)[::2]), ValueError, "bound: expected a contiguous"),
        ((x, c, o, b, torch.tensor([9])), ValueError, "rows: expected numbers from 0 to 8"),
        ((x, c, o, b, torch.tensor([-1])), ValueError, "rows: expected numbers from 0 to 8"),
        ((x, c, o, b, torch.tensor([1.0])), TypeError, "rows: expected int64"),
    ):
        with pytest.raises(error, match=words):
            min_sqdist(*arguments)


@pytest.mark.parametrize("isa", ISAS)
def test_update_argmax_waits_for_all_threads(isa, monkeypatch):
    """One long row for each of two threads, which finish in either order."""
    monkeypatch.setenv("DIVERSEEVOL_ISA", isa)
    x = torch.stack([torch.zeros(20_000), torch.ones(20_000)])
    for _ in range(500):
        nearest = torch.full((2,), float("inf"), dtype=torch.float64)
        assert update_argmax(x, x[0], nearest, backend="native") == 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_of_chosen_rows(isa, dtype, monkeypatch):
    monkeypatch.setenv("DIVERSEEVOL_ISA", isa)
    x = torch.from_numpy(make("gaussian", 300, 37, 2, 1.0, 0.0)).to(dtype)
    centers, offset = x[:40].float(), x[:40].float().mean(dim=0)
    everything = torch.full((300,), float("inf"))
    min_sqdist(x, centers, offset, everything, backend="native")
    for rows in (torch.tensor([], dtype=torch.int64), torch.tensor([299]), torch.arange(3, 300, 2)):
        wide = torch.zeros(300, 74, dtype=dtype)
        wide[:, ::2] = x
        for some in (x, wide[:, ::2]):
            bound = torch.full((300,), float("inf"))
            min_sqdist(some, centers, offset, bound, rows, backend="native")
            assert torch.equal(bound[rows], everything[rows])
            assert bound.isinf().sum() == 300 - len(rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pick_block_stops_at_the_threshold_and_tightens_bounds(backend):
    x = torch.from_numpy(make("gaussian", 60, 16, 4, 1.0, 0.0))
    indices, sqdist = reference.kcenter(x, 20, [0])
    bound = torch.full((59,), float("inf"))
    threshold = sqdist[7]
    picks, values, following = pick_block(x[1:], x[:1], x.mean(0), bound, threshold, -1.0, 50, backend=backend)
    assert (picks + 1).tolist() == indices[:7]
    assert values.tolist() == sqdist[:7]
    assert following == threshold
    assert (bound[picks] == -float("inf")).all()
    assert bound.max() >= threshold
    rows, one = torch.tensor([[3.1], [3.0]]), torch.zeros(1, 1)
    loose = torch.tensor([9.7, 20.0])  # the first row cannot be picked, although it is the farther one
    assert pick_block(rows, one, torch.full((1,), 1000.0), loose, 10.0, -1.0, 5, backend=backend)[2] >= 9.6
    everything = pick_block(x[1:], x[:1], x.mean(0), torch.full((59,), float("inf")), -1.0, -1.0, 99, backend=backend)
    assert len(everything[0]) == 59
    assert everything[2] == -1.0


def test_memory_beyond_x_is_bounded(tmp_path):
    """x is a memory map of 400 MB; the process may allocate 250 MB."""
    path = tmp_path / "x.npy"
    n, d = 100_000, 1000
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
    rng = np.random.default_rng(0)
    for start in range(0, n, 10_000):
        x[start : start + 10_000] = rng.standard_normal((10_000, d), dtype=np.float32)
    x.flush()
    del x
    code = """
import resource, sys
import numpy as np, torch
from diverseevol_fast import KCenterStream, kcenter
torch.ones(10, 10) @ torch.ones(10, 10)
x = np.load(sys.argv[1], mmap_mode="r")
kcenter(x[:2000], 5, [0, 1])
with open("/proc/self/status") as status:
    used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + (250 << 20),) * 2)
result = kcenter(x, 20, list(range(20)))
try:
    np.array(x)
except MemoryError:
    print("x does not fit", len(result.indices))
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "x does not fit 20", done.stderr


def test_real_embeddings(shared_data):
    """Hashed word counts of real rows: sparse, clustered, with exact duplicates."""
    from diverseevol_fast.data.dataset import load_data

    data, _ = load_data(str(shared_data / "instruct_15k.jsonl.gz"))
    x = np.zeros((len(data.rows), 256), dtype=np.float32)
    for i in range(len(data.rows)):
        for word in data.fields(i)["instruction"].lower().split():
            x[i, sum(word.encode()) % 256] += 1
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    result = kcenter(x, 100, list(range(100)))
    assert result.indices.tolist() == kcenter(x, 100, list(range(100)), method="streaming").indices.tolist()
    assert result.passes < 1.2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [0, 20, 59])
def test_the_first_bad_row_is_named_however_it_is_picked(backend, bad):
    x = torch.randn(60, 9)
    x[bad, 3] = float("nan")
    for how in ({"method": "streaming"}, {"block_size": 16}, {}):
        with pytest.raises(ValueError, match=f"x: row {bad} holds"):
            kcenter(x, 9, [0, 20], backend=backend, **how)


def test_what_the_streaming_step_and_the_block_refuse():
    x, nearest = torch.randn(5, 3), torch.zeros(5, dtype=torch.float64)
    for arguments, error, words in (
        ((x.double(), x[0], nearest), TypeError, "x: expected float32"),
        ((x, x[0].to("meta"), nearest), ValueError, "center: expected device cpu"),
        ((x, x[0], nearest[:4]), ValueError, "nearest: expected contiguous shape"),
        ((x[:0], x[0], nearest[:0]), ValueError, "x: expected at least one row"),
    ):
        with pytest.raises(error, match=words):
            update_argmax(*arguments)
    bound = torch.full((5,), float("inf"))
    with pytest.raises(ValueError, match="centers: expected device cpu"):
        pick_block(x, x[:1].to("meta"), x[0], bound, -1.0, -1.0, 3)
    with pytest.raises(ValueError, match="max_picks: expected at least 0"):
        pick_block(x, x[:1], x[0], bound, -1.0, -1.0, -3)
    with pytest.raises(ValueError, match="block_size: expected an integer"):
        kcenter(x, 2, [0], block_size=True)
