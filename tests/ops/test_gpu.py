"""The GPU backends against the specification, Triton's and CUDA's kernels alike: on a GPU, or on a CPU instead."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gpu import DEVICE, DTYPES, ON_GPU, assert_same_products, cuda_works, infinite, rows
from support.problems import problems

from diverseevol_fast import kcenter
from diverseevol_fast.ops import (
    backends,
    masked_mean_pool,
    min_sqdist,
    pick_block,
    pool_min_sqdist,
    reference,
    update_argmax,
)

# Triton's interpreter computes in numpy, which warns of the infinities and NaNs that are given here on purpose.
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"), pytest.mark.slow]


@pytest.fixture(scope="module", params=["cuda", "triton"])
def backend(request):
    if request.param == "triton":
        if backends.triton_unavailable():
            pytest.skip(backends.triton_unavailable())
        yield "triton"
        return
    with cuda_works():
        yield "cuda"


@settings(max_examples=250 if ON_GPU else 50, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from(DTYPES), st.sampled_from(["block", "streaming"]))
def test_same_picks_as_the_specification(backend, problem, dtype, method):
    array, k, centers, block = problem
    x = torch.from_numpy(array).to(dtype)
    if not torch.isfinite(x).all():
        return
    expected, sqdist = reference.kcenter(x, k, centers)
    result = kcenter(x.to(DEVICE), k, centers, backend=backend, method=method, block_size=block)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1),
        (3, 17, 2),
        (130, 70, 33),
        (129, 136, 200),
        (260, 64, 300),
        (140, 200, 257),
        (130, 70, 300),
        (130, 80, 300),
    ],
)
def test_bounds_are_never_below_the_distance_and_close(dtype, size, backend):
    n, d, m = size
    x = rows("gaussian", n, d, 7, offset=20.0).to(dtype)
    centers = rows("gaussian", m, d, 8, offset=20.0)
    exact = infinite(n)
    reference.min_sqdist(x, centers, exact)
    bound = infinite(n)
    bound[n // 2] = -float("inf")
    min_sqdist(x, centers, x.float().mean(dim=0), bound, backend=backend)
    assert bound[n // 2] == -float("inf")
    rest = torch.arange(n, device=DEVICE) != n // 2
    assert (bound[rest] >= exact[rest]).all()
    if d > 1:
        assert (bound[rest] <= exact[rest] + 0.05 * exact.abs().max() + 1).all()
    again = infinite(n)
    min_sqdist(x, centers, x.float().mean(dim=0), again, backend=backend)
    assert torch.equal(again[rest], bound[rest])


@pytest.mark.parametrize("count", [40, 200])
def test_bounds_of_chosen_rows_and_of_views(count, backend):
    x = rows("gaussian", 300, 24, 2)
    centers, offset = x[:count].clone(), x.mean(dim=0)
    everything = infinite(300)
    min_sqdist(x, centers, offset, everything, backend=backend)
    for first in (0, 1):  # aligned, and not
        wide = torch.full((300, 33), float("nan"), device=DEVICE)
        wide[:, first : first + 24] = x
        for chosen in (torch.tensor([299]), torch.arange(3, 300, 2)):
            bound = infinite(300)
            min_sqdist(wide[:, first : first + 24], centers, offset, bound, chosen.to(DEVICE), backend=backend)
            assert_same_products(bound[chosen], everything[chosen], backend)
            assert bound.isinf().sum() == 300 - len(chosen)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [4, 200])
def test_the_first_bad_row_is_named(value, dtype, count, backend):
    x = rows("gaussian", 300, 24, 2).to(dtype)
    x[240, 3] = x[277, 19] = value
    with pytest.raises(ValueError, match="row 240 "):
        min_sqdist(x, x[:count].float(), x[0].float(), infinite(300), backend=backend)


@pytest.mark.parametrize("scale", [1e-30, 1e19, 1e25, 1e37])
def test_values_whose_squares_leave_float32(scale, backend):
    x = rows("gaussian", 60, 9, 2, scale=scale)
    expected, sqdist = reference.kcenter(x.cpu(), 20, [0])
    for how in ({"block_size": 8}, {"method": "streaming"}):
        result = kcenter(x, 20, [0], backend=backend, **how)
        assert result.indices.tolist() == expected
        assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [5, 40])
def test_pool_min_sqdist(dtype, packed, count, backend):
    hidden = torch.randn(6, 9, 300, device=DEVICE).to(dtype)
    mask = torch.rand(6, 9, device=DEVICE) < 0.7
    mask[:, 0] = True
    given = {"hidden": hidden, "mask": mask}
    if packed:
        limits = torch.cat([torch.zeros(1, dtype=torch.int64, device=DEVICE), mask.sum(1).cumsum(0)])
        given = {"hidden": hidden[mask], "cu_seqlens": limits}
    given |= {"prefix_sum": torch.randn(300, device=DEVICE), "prefix_len": 3}
    centers, bound = torch.randn(count, 300, device=DEVICE), infinite(6)
    exact = bound.clone()
    pooled = pool_min_sqdist(**given, centers=centers, offset=centers.mean(dim=0), bound=bound, backend=backend)
    assert torch.equal(pooled, masked_mean_pool(**given, backend=backend))
    reference.min_sqdist(pooled, centers, exact)
    assert (bound >= exact).all()
    assert (bound <= 1.05 * exact).all()
    given["hidden"].view(-1, 300)[-1, 5] = float("nan")
    if not packed:
        mask[5, 8] = True
    with pytest.raises(ValueError, match="row 5 "):
        pool_min_sqdist(**given, centers=centers, offset=centers.mean(dim=0), bound=bound, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (33, 64), (130, 33), (700, 2), (5, 1025)])
def test_update_argmax(dtype, shape, backend):
    x = rows("duplicates", *shape, 2).to(dtype)
    nearest = torch.full((shape[0],), float("inf"), dtype=torch.float64, device=DEVICE)
    nearest[shape[0] // 2] = -1.0
    expected = nearest.clone()
    found = update_argmax(x, x[0].float(), nearest, backend=backend)
    assert found == reference.update_argmax(x, x[0].float(), expected)
    assert torch.equal(nearest, expected)


def test_pick_block_stops_at_the_threshold_and_tightens_bounds(backend):
    x = rows("gaussian", 30, 16, 4)
    indices, sqdist = reference.kcenter(x.cpu(), 20, [0])
    bound = infinite(29)
    picks, values, following = pick_block(x[1:], x[:1], x.mean(0), bound, sqdist[7], -1.0, 50, backend=backend)
    assert (picks + 1).tolist() == indices[:7]
    assert values.tolist() == sqdist[:7]
    assert following == sqdist[7]
    assert (bound[picks] == -float("inf")).all()
    picks, _, following = pick_block(x[1:], x[:1], x.mean(0), infinite(29), -1.0, -1.0, 99, backend=backend)
    assert len(picks) == 29
    assert following == -1.0
