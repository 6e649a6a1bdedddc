"""The Triton ops against the specification: in the interpreter on a CPU, for real on a GPU; and compiled for GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_traversal import KINDS, make, problems

from diverseevol_fast import kcenter
from diverseevol_fast.ops import masked_mean_pool, min_sqdist, pick_block, pool_min_sqdist, reference, update_argmax

# The interpreter computes in numpy, which warns of the infinities and NaNs that are given here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(kind: str, n: int, d: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(make(kind, n, d, seed, 1.0, offset)).to(DEVICE)


@settings(max_examples=40 if DEVICE == "cpu" else 250, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from(DTYPES), st.sampled_from(["block", "streaming"]))
def test_same_picks_whatever_the_problem(problem, dtype, method):
    array, k, centers, block = problem
    x = torch.from_numpy(array).to(dtype)
    if not torch.isfinite(x).all():
        return
    expected, sqdist = reference.kcenter(x, k, centers)
    result = kcenter(x.to(DEVICE), k, centers, backend="triton", method=method, block_size=block)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_picks_as_the_specification(kind, dtype):
    x = rows(kind, 40, 9, 1, offset=3.0).to(dtype)
    expected, sqdist = reference.kcenter(x.cpu(), 10, [5, 33])
    for how in ({"block_size": 12}, {"method": "streaming"}):
        result = kcenter(x, 10, [5, 33], backend="triton", **how)
        assert result.indices.tolist() == expected
        assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 2), (130, 70, 33), (65, 130, 5)])
def test_bounds_are_never_below_the_distance_and_close(dtype, size):
    n, d, m = size
    x = rows("gaussian", n, d, 7, offset=20.0).to(dtype)
    centers = rows("gaussian", m, d, 8, offset=20.0)
    exact = torch.full((n,), float("inf"), device=DEVICE)
    reference.min_sqdist(x, centers, exact)
    bound = torch.full((n,), float("inf"), device=DEVICE)
    bound[n // 2] = -float("inf")
    min_sqdist(x, centers, x.float().mean(dim=0), bound, backend="triton")
    assert bound[n // 2] == -float("inf")
    rest = torch.arange(n, device=DEVICE) != n // 2
    assert (bound[rest] >= exact[rest]).all()
    if d > 1:
        assert (bound[rest] <= exact[rest] + 0.05 * exact.abs().max() + 1).all()


@pytest.mark.parametrize("products", ["bfloat16", "float16", "tf32x3", "float32"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e5])
def test_bounds_hold_whatever_the_products(products, scale):
    """float16 overflows at the largest scale: bounds stay what they were, infinite."""
    from diverseevol_fast.triton_ops import min_sqdist as module

    x = rows("gaussian", 70, 40, 7, offset=3.0) * scale
    centers, exact, bound = x[:35].clone() * 1.1, torch.full((70,), float("inf"), device=DEVICE), None
    reference.min_sqdist(x, centers, exact)
    bound = torch.full((70,), float("inf"), device=DEVICE)
    module.min_sqdist(x, centers, x.mean(dim=0), bound, None, products)
    assert (bound >= exact).all()
    wide = {"bfloat16": 0.05, "float16": 0.01, "tf32x3": 1e-3, "float32": 1e-3}[products]
    if not (products == "float16" and scale == 1e5):
        assert (bound <= exact + wide * exact.max()).all()


def test_bounds_of_chosen_rows_and_of_a_view():
    x = rows("gaussian", 150, 20, 2)
    centers, offset = x[:40].clone(), x.mean(dim=0)
    everything = torch.full((150,), float("inf"), device=DEVICE)
    min_sqdist(x, centers, offset, everything, backend="triton")
    wide = torch.full((150, 33), float("nan"), device=DEVICE)
    wide[:, :20] = x
    for chosen in (torch.tensor([149]), torch.arange(3, 150, 2)):
        bound = torch.full((150,), float("inf"), device=DEVICE)
        min_sqdist(wide[:, :20], centers, offset, bound, chosen.to(DEVICE), backend="triton")
        assert torch.equal(bound[chosen], everything[chosen])
        assert bound.isinf().sum() == 150 - len(chosen)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_row_is_named(value):
    x = rows("gaussian", 150, 20, 2)
    x[140, 3] = x[77, 19] = value
    with pytest.raises(ValueError, match="row 77 "):
        min_sqdist(x, x[:4].clone(), x[0].clone(), torch.full((150,), float("inf"), device=DEVICE), backend="triton")


def test_finite_values_whose_squares_overflow_keep_their_bound():
    x = rows("gaussian", 30, 8, 2) * 1e25
    bound = torch.full((30,), float("inf"), device=DEVICE)
    min_sqdist(x, x[:4].clone(), x[0].clone(), bound, backend="triton")
    assert bound.isinf().all()
    assert kcenter(x, 9, [0], block_size=8, backend="triton").indices.tolist() == reference.kcenter(x.cpu(), 9, [0])[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_pool_min_sqdist(dtype, packed):
    hidden = torch.randn(6, 9, 300, device=DEVICE).to(dtype)
    mask = torch.rand(6, 9, device=DEVICE) < 0.7
    mask[:, 0] = True
    given = {"hidden": hidden, "mask": mask}
    if packed:
        limits = torch.cat([torch.zeros(1, dtype=torch.int64, device=DEVICE), mask.sum(1).cumsum(0)])
        given = {"hidden": hidden[mask], "cu_seqlens": limits}
    given |= {"prefix_sum": torch.randn(300, device=DEVICE), "prefix_len": 3}
    centers, bound = torch.randn(40, 300, device=DEVICE), torch.full((6,), float("inf"), device=DEVICE)
    exact = bound.clone()
    pooled = pool_min_sqdist(**given, centers=centers, offset=centers.mean(dim=0), bound=bound, backend="triton")
    assert torch.equal(pooled, masked_mean_pool(**given, backend="triton"))
    reference.min_sqdist(pooled, centers, exact)
    assert (bound >= exact).all()
    assert (bound <= 1.05 * exact).all()
    given["hidden"].view(-1, 300)[-1, 5] = float("nan")
    if not packed:
        mask[5, 8] = True
    with pytest.raises(ValueError, match="row 5 "):
        pool_min_sqdist(**given, centers=centers, offset=centers.mean(dim=0), bound=bound, backend="triton")


@pytest.mark.parametrize("shape", [(1, 1), (33, 64), (130, 33), (2500, 2)])
def test_update_argmax(shape):
    x = rows("duplicates", *shape, 2)
    nearest = torch.full((shape[0],), float("inf"), dtype=torch.float64, device=DEVICE)
    nearest[shape[0] // 2] = -1.0
    expected = nearest.clone()
    assert update_argmax(x, x[0], nearest, backend="triton") == reference.update_argmax(x, x[0], expected)
    assert torch.equal(nearest, expected)


def test_pick_block_stops_at_the_threshold_and_tightens_bounds():
    x = rows("gaussian", 30, 16, 4)
    indices, sqdist = reference.kcenter(x.cpu(), 20, [0])
    bound = torch.full((29,), float("inf"), device=DEVICE)
    picks, values, following = pick_block(x[1:], x[:1], x.mean(0), bound, sqdist[7], -1.0, 50, backend="triton")
    assert (picks + 1).tolist() == indices[:7]
    assert values.tolist() == sqdist[:7]
    assert following == sqdist[7]
    assert (bound[picks] == -float("inf")).all()
    again = torch.full((29,), float("inf"), device=DEVICE)
    picks, _, following = pick_block(x[1:], x[:1], x.mean(0), again, -1.0, -1.0, 99, backend="triton")
    assert len(picks) == 29
    assert following == -1.0


def test_every_kernel_compiles_for_gpus_without_spilling():
    """Ahead of time, for sm_80, 90 and 100; needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_triton.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["sm"] for line in lines} == {80, 90, 100}
    assert [line for line in lines if line["spilled"]] == []


def test_every_op_of_the_device_benchmark():
    """bench/device.py on small shapes, as bench/device.sh gives it to compute-sanitizer."""
    program = Path(__file__).resolve().parents[1] / "bench" / "device.py"
    done = subprocess.run([sys.executable, str(program), "small"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
