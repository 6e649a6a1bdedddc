"""What only the CUDA C++ kernels are asked: large problems, and the order of additions that the CPU has."""

import contextlib
import importlib.util

import pytest
import torch
from support.gpu import DEVICE, DTYPES, ON_GPU, cuda_works, infinite, rows

from diverseevol_fast import KCenterStream, kcenter
from diverseevol_fast.ops import backends, masked_mean_pool, min_sqdist, native, pick_block, reference, update_argmax

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cuda_backend():
    with cuda_works():
        yield


@pytest.mark.parametrize("kind", ["gaussian", "near-duplicates", "permuted"])
def test_larger_problems(kind):
    """More rows than a tile, more centers than the wide tiles of a Hopper ask for."""
    x = rows(kind, 300, 70, 5, offset=3.0).to(torch.bfloat16)
    expected, sqdist = reference.kcenter(x.cpu(), 20, list(range(0, 300, 3)))
    result = kcenter(x, 20, list(range(0, 300, 3)), backend="cuda", block_size=64)
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist


@pytest.mark.parametrize("stride", [0, 8])
def test_rows_that_overlap(stride):
    """A tensor map, which Hopper's kernel copies by, has no stride below the width."""
    x = rows("gaussian", 1, 1600, 4)[0].to(torch.bfloat16).as_strided((160, 72), (stride, 1))
    centers, exact, bound = rows("gaussian", 200, 72, 5), infinite(160), infinite(160)
    reference.min_sqdist(x, centers, exact)
    min_sqdist(x, centers, centers.mean(0), bound, backend="cuda")
    assert (bound >= exact).all()
    assert (bound <= 1.05 * exact + 1).all()


@pytest.mark.skipif(ON_GPU, reason="the emulated GPU is a Hopper for which few rows are enough")
def test_which_calls_take_hoppers_kernel():
    x = rows("gaussian", 300, 64, 5).to(torch.bfloat16)
    assert suits_hopper(x, 192)
    assert not suits_hopper(x, 191)
    assert not suits_hopper(x.float(), 192)
    assert not suits_hopper(x[:100], 192)
    assert not suits_hopper(x[:1].expand(300, 64), 192)
    assert suits_hopper(x[:1].expand(300, 64), 192, torch.arange(128))  # gathered first
    assert suits_hopper(x[:, 1:], 192, torch.arange(128))
    assert not suits_hopper(x, 192, torch.arange(127))
    cpu = native._native.cpu_target(isa="scalar", threads=1)
    assert not suits_hopper(x, 192, target=cpu)


def suits_hopper(x, centers, numbers=None, target=None):
    return native._native.suits_hopper(
        target or native.execution_target(x.device),
        native._rows(x),
        indices=native._address(numbers),
        count=len(x) if numbers is None else len(numbers),
        num_centers=centers,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_general_kernel_where_hoppers_would_serve(dtype):
    x, centers = rows("gaussian", 300, 72, 5).to(dtype), rows("gaussian", 200, 72, 6)
    exact, offset, found = infinite(300), x.float().mean(0), []
    reference.min_sqdist(x, centers, exact)
    for general in (False, True):
        bound = infinite(300)
        assert int(native.min_sqdist(x, centers, offset, bound, None, general)) == -1
        assert (bound >= exact).all()
        assert (bound <= 1.05 * exact + 1).all()
        found.append(bound)
    assert ON_GPU or not torch.equal(*found)  # other products: Hopper's are with rows as they are stored


CHOSEN = {
    "every second": torch.arange(1, 700, 2),  # of the emulated GPU's chunks, 256 rows of 64 columns, two
    "unsorted": torch.randperm(700, generator=torch.Generator().manual_seed(1))[:300],
    "less than a chunk": torch.arange(699, 560, -1),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chosen", CHOSEN)
@pytest.mark.parametrize("dim", [64, 77])  # 77: rows that are not aligned
def test_chosen_rows_have_the_bounds_of_all_rows(dtype, chosen, dim):
    """Hopper's kernel gathers them, a chunk at a time: to the bit what it says of the same rows where they lie."""
    aligned, chosen = rows("gaussian", 700, 80, 5).to(dtype)[:, :dim], CHOSEN[chosen]
    x = aligned if dim == 64 else aligned.contiguous()
    centers, offset = rows("gaussian", 200, dim, 6), x.float().mean(0)
    assert ON_GPU or (suits_hopper(aligned, 200) and suits_hopper(x, 200, chosen))
    everything, bound, expected = infinite(700), infinite(700), infinite(700)
    min_sqdist(aligned, centers, offset, everything, backend="cuda")
    expected[chosen] = everything[chosen]
    min_sqdist(x, centers, offset, bound, chosen.to(DEVICE), backend="cuda")
    assert torch.equal(bound, expected)


def test_the_lowest_bad_row_among_the_chosen_is_named():
    x, centers = rows("gaussian", 700, 64, 5).to(torch.bfloat16), rows("gaussian", 200, 64, 6)
    x[[30, 411, 555], 9] = float("nan")
    chosen = torch.arange(1, 700, 2)
    for order in (chosen, chosen.flip(0)):
        with pytest.raises(ValueError, match="row 411 "):
            min_sqdist(x, centers, x[0].float(), infinite(700), order.to(DEVICE), backend="cuda")
    good = chosen[(chosen != 411) & (chosen != 555)]
    min_sqdist(x, centers, x[0].float(), infinite(700), good.to(DEVICE), backend="cuda")


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
        patch.setattr(backends, "run", lambda name, op, device, *given: getattr(fresh, op)(*given))
        yield


def test_masked_mean_pool_names_the_first_empty_row():
    hidden, mask = torch.randn(5, 4, 8, device=DEVICE), torch.ones(5, 4, dtype=torch.bool, device=DEVICE)
    mask[3] = mask[2] = False
    with pytest.raises(ValueError, match="mask: row 2 has no token"):
        masked_mean_pool(hidden, mask, backend="cuda")


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


def test_update_argmax_of_wide_rows():
    x = rows("gaussian", 3, 70_000, 2)
    nearest = torch.full((3,), float("inf"), dtype=torch.float64, device=DEVICE)
    expected = nearest.clone()
    assert update_argmax(x, x[0], nearest, backend="cuda") == reference.update_argmax(x, x[0], expected)
    assert torch.equal(nearest, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 1, 8])  # column 1: rows that are not aligned
@pytest.mark.parametrize("dim", [256, 512, 1024, 4096, 16384])
def test_update_argmax_of_power_of_two_widths(dtype, first, dim):
    """Exact: the specification's order of additions, though 16 bytes are read at once."""
    n = 40 if dim < 4096 else 9
    wide = torch.full((n, dim + 8), float("nan"), device=DEVICE, dtype=dtype)
    wide[:, first : first + dim] = rows("gaussian", n, dim, 2)
    x, nearest = wide[:, first : first + dim], torch.full((n,), float("inf"), dtype=torch.float64, device=DEVICE)
    nearest[n // 2] = -1.0
    expected = nearest.clone()
    for center in (x[0].float(), x[n - 1].float()):
        found = update_argmax(x, center, nearest, backend="cuda")
        assert found == reference.update_argmax(x, center, expected)
        assert torch.equal(nearest, expected)


@pytest.mark.parametrize("first", [0, 1])  # column 1: rows that are not aligned
@pytest.mark.parametrize("dim", [256, 1024, 4096])
def test_pick_block_of_power_of_two_widths(dim, first):
    memory = torch.zeros(first + 45 * dim, device=DEVICE)
    x = memory[first:].view(45, dim)
    x.copy_(rows("near-duplicates", 45, dim, 3))
    given = x[12:], x[:12], x.mean(0)
    exact, bound = infinite(33), infinite(33)
    expected = reference.pick_block(given[0], given[1], exact, -1.0, -1.0, 12)
    got = pick_block(*given, bound, -1.0, -1.0, 12, backend="cuda")
    assert got[0].tolist() == expected[0].tolist()
    assert got[1].tolist() == expected[1].tolist()
    assert (bound >= exact).all()


def test_more_columns_than_shared_memory_holds():
    x = torch.zeros(2, 131_073, device=DEVICE)
    nearest = torch.zeros(2, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="update_argmax: up to 131072 columns on this GPU, got 131073"):
        update_argmax(x, x[0], nearest, backend="cuda")
