"""The CUDA C++ kernels against the specification: on a GPU, or on a CPU that runs their threads (cuda_emulated)."""

import contextlib
import importlib.machinery
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_traversal import make, problems

from diverseevol_fast import KCenterStream, kcenter
from diverseevol_fast.ops import (
    backends,
    logit_stats,
    masked_mean_pool,
    min_sqdist,
    native,
    pick_block,
    pool_min_sqdist,
    reference,
    update_argmax,
)

ROOT = Path(__file__).resolve().parents[1]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def emulated_module():
    """The extension with csrc/cuda on an emulated GPU, from build/emulated."""
    import pybind11

    if shutil.which("c++") is None or not (ROOT / "csrc").is_dir():
        pytest.skip("needs a C++ compiler and csrc/")
    folder, tools = ROOT / "build" / "emulated", Path(sys.executable).parent
    commands = [
        [tools / "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DDEF_CUDA=emulated",
         f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"],
        [tools / "cmake", "--build", folder],
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (library,) = folder.glob("_native*.so")
    loader = importlib.machinery.ExtensionFileLoader("_native", str(library))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_native", loader))
    loader.exec_module(module)
    return module


def emulated_where(module):
    """native.where for the emulated GPU."""
    kept = []

    def allocate(count: int) -> int:
        kept.append(torch.full((count + 256,), 0xFF, dtype=torch.uint8))  # NaN, whatever is made of it
        return kept[-1].data_ptr() + -kept[-1].data_ptr() % 256

    return lambda device: module.on_gpu(device=0, stream=0, allocate=allocate)


@pytest.fixture(scope="module", autouse=True)
def cuda_backend():
    """backend="cuda" works on DEVICE."""
    if ON_GPU:
        if backends.cuda_unavailable():
            pytest.skip(backends.cuda_unavailable())
        yield
        return
    module = emulated_module()
    usable = backends.unusable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_native", module)
        patch.setattr(native, "where", emulated_where(module))
        patch.setattr(backends, "unusable", lambda name, *more: None if name == "cuda" else usable(name, *more))
        yield


def rows(kind: str, n: int, d: int, seed: int, offset: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(make(kind, n, d, seed, scale, offset)).to(DEVICE)


def infinite(n: int) -> torch.Tensor:
    return torch.full((n,), float("inf"), device=DEVICE)


@settings(max_examples=60 if not ON_GPU else 250, deadline=None, suppress_health_check=list(HealthCheck))
@given(problems(), st.sampled_from(DTYPES), st.sampled_from(["block", "streaming"]))
def test_same_picks_as_the_specification(problem, dtype, method):
    array, k, centers, block = problem
    x = torch.from_numpy(array).to(dtype)
    if not torch.isfinite(x).all():
        return
    expected, sqdist = reference.kcenter(x, k, centers)
    result = kcenter(x.to(DEVICE), k, centers, backend="cuda", method=method, block_size=block)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("kind", ["gaussian", "near-duplicates", "permuted"])
def test_larger_problems(kind):
    """More rows than a tile, more centres than the wide tiles of a Hopper ask for."""
    x = rows(kind, 300, 70, 5, offset=3.0).to(torch.bfloat16)
    expected, sqdist = reference.kcenter(x.cpu(), 20, list(range(0, 300, 3)))
    result = kcenter(x, 20, list(range(0, 300, 3)), backend="cuda", block_size=64)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


def test_a_stream_of_batches():
    x = rows("gaussian", 90, 33, 3)
    expected, _ = reference.kcenter(x.cpu(), 12, list(range(40)))
    stream = KCenterStream(x[:40], 50, backend="cuda")
    for part in x[40:].split(17):
        stream.push(part[:, None, :], torch.ones(len(part), 1, dtype=torch.bool, device=DEVICE))
    assert (stream.select(12).indices + 40).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 9, 17), (2, 21, 128), (2, 1500, 8), (4, 5, 1030)])
@pytest.mark.parametrize("prefix", [0, 3])
def test_masked_mean_pool_adds_in_the_order_of_the_cpu(dtype, shape, prefix):
    """Bit for bit; masked positions hold NaN."""
    batch, tokens, dim = shape
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(batch, tokens, dim, generator=generator).to(dtype)
    mask = torch.rand(batch, tokens, generator=generator) < 0.7
    mask[:, -1] = True
    hidden[~mask] = float("nan")
    more = {"prefix_sum": torch.randn(dim, generator=generator), "prefix_len": prefix} if prefix else {}
    on_device = {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in more.items()}
    with native_on_the_cpu():
        expected = masked_mean_pool(hidden, mask, **more, backend="native")
    got = masked_mean_pool(hidden.to(DEVICE), mask.to(DEVICE), **on_device, backend="cuda")
    assert torch.equal(got.cpu(), expected)
    limits = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)]).to(DEVICE)
    packed = masked_mean_pool(hidden[mask].to(DEVICE), cu_seqlens=limits, **on_device, backend="cuda")
    assert torch.equal(packed.cpu(), expected)
    wide = torch.full((batch, tokens, dim + 3), float("nan"), dtype=dtype)
    wide[:, :, 1 : dim + 1] = hidden
    got = masked_mean_pool(wide.to(DEVICE)[:, :, 1 : dim + 1], mask.to(DEVICE), **on_device, backend="cuda")
    assert torch.equal(got.cpu(), expected)


@contextlib.contextmanager
def native_on_the_cpu():
    """backend="native" as it is outside of this file."""
    with pytest.MonkeyPatch.context() as patch:
        spec = importlib.util.find_spec("diverseevol_fast.ops.native")
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
        patch.setattr(backends, "module_of", lambda name, op: fresh)
        yield


def test_masked_mean_pool_names_the_first_empty_row():
    hidden, mask = torch.randn(5, 4, 8, device=DEVICE), torch.ones(5, 4, dtype=torch.bool, device=DEVICE)
    mask[3] = mask[2] = False
    with pytest.raises(ValueError, match="mask: row 2 has no token"):
        masked_mean_pool(hidden, mask, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (3, 17, 2), (130, 70, 33), (129, 136, 200), (260, 64, 300), (140, 200, 257)]
)
def test_bounds_are_never_below_the_distance_and_close(dtype, size):
    n, d, m = size
    x = rows("gaussian", n, d, 7, offset=20.0).to(dtype)
    centers = rows("gaussian", m, d, 8, offset=20.0)
    exact = infinite(n)
    reference.min_sqdist(x, centers, exact)
    bound = infinite(n)
    bound[n // 2] = -float("inf")
    min_sqdist(x, centers, x.float().mean(dim=0), bound, backend="cuda")
    assert bound[n // 2] == -float("inf")
    rest = torch.arange(n, device=DEVICE) != n // 2
    assert (bound[rest] >= exact[rest]).all()
    if d > 1:
        assert (bound[rest] <= exact[rest] + 0.05 * exact.abs().max() + 1).all()
    again = infinite(n)
    min_sqdist(x, centers, x.float().mean(dim=0), again, backend="cuda")
    assert torch.equal(again[rest], bound[rest])


@pytest.mark.parametrize("count", [40, 200])
def test_bounds_of_chosen_rows_and_of_views(count):
    x = rows("gaussian", 300, 24, 2)
    centers, offset = x[:count].clone(), x.mean(dim=0)
    everything = infinite(300)
    min_sqdist(x, centers, offset, everything, backend="cuda")
    for first in (0, 1):  # aligned, and not
        wide = torch.full((300, 33), float("nan"), device=DEVICE)
        wide[:, first : first + 24] = x
        for chosen in (torch.tensor([299]), torch.arange(3, 300, 2)):
            bound = infinite(300)
            min_sqdist(wide[:, first : first + 24], centers, offset, bound, chosen.to(DEVICE), backend="cuda")
            assert torch.equal(bound[chosen], everything[chosen])
            assert bound.isinf().sum() == 300 - len(chosen)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [4, 200])
def test_the_first_bad_row_is_named(value, dtype, count):
    x = rows("gaussian", 300, 24, 2).to(dtype)
    x[240, 3] = x[277, 19] = value
    with pytest.raises(ValueError, match="row 240 "):
        min_sqdist(x, x[:count].float(), x[0].float(), infinite(300), backend="cuda")


@pytest.mark.parametrize("scale", [1e-30, 1e19, 1e25, 1e37])
def test_values_whose_squares_leave_float32(scale):
    x = rows("gaussian", 60, 9, 2, scale=scale)
    expected, sqdist = reference.kcenter(x.cpu(), 20, [0])
    for how in ({"block_size": 8}, {"method": "streaming"}):
        result = kcenter(x, 20, [0], backend="cuda", **how)
        assert result.indices.tolist() == expected
        assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [5, 40])
def test_pool_min_sqdist(dtype, packed, count):
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
    pooled = pool_min_sqdist(**given, centers=centers, offset=centers.mean(dim=0), bound=bound, backend="cuda")
    assert torch.equal(pooled, masked_mean_pool(**given, backend="cuda"))
    reference.min_sqdist(pooled, centers, exact)
    assert (bound >= exact).all()
    assert (bound <= 1.05 * exact).all()
    given["hidden"].view(-1, 300)[-1, 5] = float("nan")
    if not packed:
        mask[5, 8] = True
    with pytest.raises(ValueError, match="row 5 "):
        pool_min_sqdist(**given, centers=centers, offset=centers.mean(dim=0), bound=bound, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (33, 64), (130, 33), (700, 2), (5, 1025), (3, 9000)])
def test_update_argmax(dtype, shape):
    x = rows("duplicates", *shape, 2).to(dtype)
    nearest = torch.full((shape[0],), float("inf"), dtype=torch.float64, device=DEVICE)
    nearest[shape[0] // 2] = -1.0
    expected = nearest.clone()
    found = update_argmax(x, x[0].float(), nearest, backend="cuda")
    assert found == reference.update_argmax(x, x[0].float(), expected)
    assert torch.equal(nearest, expected)


def test_pick_block_stops_at_the_threshold_and_tightens_bounds():
    x = rows("gaussian", 30, 16, 4)
    indices, sqdist = reference.kcenter(x.cpu(), 20, [0])
    bound = infinite(29)
    picks, values, following = pick_block(x[1:], x[:1], x.mean(0), bound, sqdist[7], -1.0, 50, backend="cuda")
    assert (picks + 1).tolist() == indices[:7]
    assert values.tolist() == sqdist[:7]
    assert following == sqdist[7]
    assert (bound[picks] == -float("inf")).all()
    picks, _, following = pick_block(x[1:], x[:1], x.mean(0), infinite(29), -1.0, -1.0, 99, backend="cuda")
    assert len(picks) == 29
    assert following == -1.0


@pytest.mark.parametrize("kind", ["gaussian", "near-duplicates", "permuted"])
@pytest.mark.parametrize("shape", [(70, 300, 90), (130, 1030, 65)])
def test_pick_block_of_more_than_a_tile(kind, shape):
    members, dim, count = shape
    x = rows(kind, members + count, dim, 3)
    given = x[count:].clone(), x[:count].clone(), x.mean(0)
    exact, bound = infinite(members), infinite(members)
    expected = reference.pick_block(given[0], given[1], exact, -1.0, -1.0, 15)
    got = pick_block(*given, bound, -1.0, -1.0, 15, backend="cuda")
    assert got[0].tolist() == expected[0].tolist()
    assert got[1].tolist() == expected[1].tolist()
    assert (bound >= exact).all()


def test_more_columns_than_shared_memory_holds():
    x = torch.zeros(2, 131_073, device=DEVICE)
    nearest = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="update_argmax: up to 131072 columns on a GPU, got 131073"):
        update_argmax(x, x[0], nearest, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 2), (70, 72, 1100), (130, 33, 129)])
@pytest.mark.parametrize("biased", [False, True])
def test_logit_stats(dtype, size, biased):
    tokens, dim, vocabulary = size
    generator = torch.Generator().manual_seed(dim)
    hidden = torch.randn(tokens, dim, generator=generator).to(dtype).to(DEVICE)
    weight = torch.randn(vocabulary, dim, generator=generator).to(dtype).to(DEVICE)
    bias = torch.randn(vocabulary, generator=generator).to(dtype).to(DEVICE) if biased else None
    expected = logit_stats(hidden, weight, bias, backend="reference")
    got = logit_stats(hidden, weight, bias, backend="cuda")
    for name, one, other in zip(expected._fields, got, expected, strict=True):
        torch.testing.assert_close(
            one, other, atol=2e-5 * dim**0.5, rtol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_logit_stats_names_the_first_bad_token():
    hidden, weight = torch.randn(40, 16, device=DEVICE), torch.randn(50, 16, device=DEVICE)
    hidden[30, 2] = hidden[22, 1] = float("nan")
    with pytest.raises(ValueError, match="22"):
        logit_stats(hidden, weight, backend="cuda")


def test_every_source_compiles_for_gpus_without_spilling():
    """With nvcc, warnings as errors, for sm_80, 90a and 100; needs no GPU."""
    if shutil.which("nvcc") is None or not (ROOT / "csrc").is_dir():
        pytest.skip("nvcc is not on PATH: the CUDA sources cannot be compiled")
    program = Path(__file__).with_name("compile_cuda.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(line["source"], line["sm"]) for line in lines} == {
        (source.name, capability)
        for source in (ROOT / "csrc" / "cuda").glob("*.cu")
        for capability in ("80", "90a", "100")
        if source.name != "min_sqdist_hopper.cu" or capability == "90a"
    }
    assert [line for line in lines if line["spilled"]] == []


def test_this_build_has_the_kernels_where_there_is_nvcc():
    """A failed build is no reason for an install to fail, but it is one for the tests to."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    done = subprocess.run(
        [sys.executable, "-c", "from diverseevol_fast.ops import backends; print(backends.cuda_unavailable())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "None"
