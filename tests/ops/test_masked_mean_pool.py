"""masked_mean_pool: every backend and ISA against the float64 reference."""

import numpy as np
import pytest
import torch

from diverseevol_fast import masked_mean_pool
from diverseevol_fast.ops import backends, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1), (3, 17, 5), (2, 129, 129), (17, 3, 64), (1, 9, 1000), (5, 8, 16)]


def isas() -> list[str]:
    if backends.native_unavailable():
        return []
    from diverseevol_fast import _native

    return _native.usable_isas()


def case(batch, tokens, dim, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, tokens, dim, generator=generator).to(dtype)
    mask = torch.rand(batch, tokens, generator=generator) < 0.7
    mask[:, 0] = True
    return hidden, mask


def require(backend):
    reason = backends.unusable(backend, "cpu")
    if reason:
        pytest.skip(f"{backend}: {reason}")


def error_against_float64(got, hidden, mask):
    weight = mask[:, :, None].double()
    exact = (torch.where(mask[:, :, None], hidden.double(), 0.0) * weight).sum(1) / weight.sum(1)
    return (got.double() - exact).abs().max().item()


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_reference(backend, dtype, size):
    require(backend)
    hidden, mask = case(*size, dtype)
    got = masked_mean_pool(hidden, mask, backend=backend)
    expected = reference.masked_mean_pool(hidden, mask)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("size", [(4, 512, 256), (2, 65, 129)])
def test_error_is_at_most_twice_that_of_torch(backend, size):
    require(backend)
    hidden, mask = case(*size, torch.float32, seed=1)
    plain = torch.where(mask[:, :, None], hidden, 0.0).sum(1) / mask.sum(1, keepdim=True)
    ours = error_against_float64(masked_mean_pool(hidden, mask, backend=backend), hidden, mask)
    assert ours <= 2 * error_against_float64(plain, hidden, mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", isas())
def test_every_isa_gives_the_same_bits(isa, dtype, monkeypatch):
    hidden, mask = case(5, 67, 133, dtype)
    monkeypatch.setenv("DIVERSEEVOL_ISA", "scalar")
    scalar = masked_mean_pool(hidden, mask, backend="native")
    monkeypatch.setenv("DIVERSEEVOL_ISA", isa)
    assert torch.equal(masked_mean_pool(hidden, mask, backend="native"), scalar)


def test_float16_subnormals_and_extremes(monkeypatch):
    require("native")
    bits = np.arange(0, 1 << 16, dtype=np.uint16)
    finite = bits[(bits >> 10 & 31) != 31].view(np.float16)
    hidden = torch.from_numpy(finite)[None, None, :]
    mask = torch.ones(1, 1, dtype=torch.bool)
    for isa in isas():
        monkeypatch.setenv("DIVERSEEVOL_ISA", isa)
        assert torch.equal(masked_mean_pool(hidden, mask, backend="native")[0], torch.from_numpy(finite).float())


@pytest.mark.parametrize("backend", backends.OPS["masked_mean_pool"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix_len", [0, 5])
def test_packed_rows_and_prefixes_are_the_same_as_padded(backend, dtype, prefix_len):
    require(backend)
    lengths = [1, 8, 0 if prefix_len else 3, 17, 40]
    whole = [torch.randn(length + prefix_len, 37).to(dtype) for length in lengths]
    if prefix_len:
        for row in whole:
            row[:prefix_len] = whole[0][:prefix_len]
    expected = torch.stack([row.double().mean(0) for row in whole]).float()
    prefix = {}
    if prefix_len:
        prefix = {"prefix_sum": whole[0][:prefix_len].float().sum(0), "prefix_len": prefix_len}
    packed = torch.cat([row[prefix_len:] for row in whole])
    limits = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    got = masked_mean_pool(packed, cu_seqlens=limits, **prefix, backend=backend)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    padded = torch.full((len(lengths), max(lengths), 37), float("nan")).to(dtype)
    for row, length in enumerate(lengths):
        padded[row, :length] = whole[row][prefix_len:]
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    assert torch.equal(masked_mean_pool(padded, mask, **prefix, backend=backend), got)


@pytest.mark.parametrize("backend", backends.OPS["masked_mean_pool"])
def test_masked_positions_never_reach_the_result(backend):
    require(backend)
    hidden, mask = case(3, 33, 40, torch.float32)
    clean = masked_mean_pool(hidden, mask, backend=backend)
    hidden[~mask] = float("nan")
    assert torch.equal(masked_mean_pool(hidden, mask, backend=backend), clean)
    hidden[~mask] = float("inf")
    assert torch.equal(masked_mean_pool(hidden, mask, backend=backend), clean)


@pytest.mark.parametrize("backend", backends.OPS["masked_mean_pool"])
def test_a_row_with_nothing_to_pool_is_named(backend):
    require(backend)
    hidden, mask = case(6, 5, 8, torch.float32)
    mask[4] = False
    mask[2] = False
    with pytest.raises(ValueError, match="row 2 has no token"):
        masked_mean_pool(hidden, mask, backend=backend)


@pytest.mark.parametrize("backend", backends.OPS["masked_mean_pool"])
@pytest.mark.parametrize("view", ["transposed", "every second token", "sliced columns", "expanded"])
def test_strided_views(backend, view):
    require(backend)
    hidden, _ = case(4, 12, 20, torch.float32)
    hidden = {
        "transposed": hidden.transpose(1, 2),
        "every second token": hidden[:, ::2],
        "sliced columns": hidden[:, :, 3:14],
        "expanded": hidden[:1].expand(4, -1, -1),
    }[view]
    mask = (torch.arange(hidden.shape[0] * hidden.shape[1]).view(hidden.shape[:2]) % 3 > 0)[:, :]
    mask[:, 1] = True
    expected = reference.masked_mean_pool(hidden.contiguous(), mask)
    torch.testing.assert_close(masked_mean_pool(hidden, mask, backend=backend), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked_mean_pool(hidden, mask.t().contiguous().t(), backend=backend), expected)


def test_integer_masks_and_empty_batches():
    hidden, mask = case(3, 5, 8, torch.float32)
    assert torch.equal(masked_mean_pool(hidden, mask.long() * 7), masked_mean_pool(hidden, mask))
    assert masked_mean_pool(hidden[:0], mask[:0]).shape == (0, 8)


@pytest.mark.parametrize(
    ("hidden", "mask", "error", "words"),
    [
        (np.zeros((1, 1, 1)), torch.ones(1, 1), TypeError, "hidden: expected a torch.Tensor, got ndarray"),
        (torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1).bool(), TypeError, "float64"),
        (torch.zeros(1, 1, 1), torch.ones(1, 1), TypeError, "mask: expected bool or an integer"),
        (torch.zeros(2, 2), torch.ones(2, 2).bool(), ValueError, r"\[B, T, D\]"),
        (torch.zeros(2, 3, 4), torch.ones(3, 2).bool(), ValueError, r"mask: expected shape \(2, 3\)"),
        (torch.zeros(2, 3, 4), None, ValueError, "either mask .padded rows. or cu_seqlens"),
    ],
)
def test_wrong_arguments(hidden, mask, error, words):
    with pytest.raises(error, match=words):
        masked_mean_pool(hidden, mask)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"cu_seqlens": torch.tensor([0, 3])}, ValueError, "cu_seqlens: expected to ascend from 0 to 4"),
        ({"cu_seqlens": torch.tensor([0, 3, 2, 4])}, ValueError, "cu_seqlens: expected to ascend"),
        ({"cu_seqlens": torch.tensor([0.0, 4.0])}, TypeError, "cu_seqlens: expected an integer dtype"),
        ({"cu_seqlens": torch.tensor([0, 4, 4])}, ValueError, "cu_seqlens: row 1 has no token to pool"),
        ({"cu_seqlens": torch.tensor([0, 4]), "prefix_len": 2}, ValueError, "prefix_len: expected at least 1 with"),
        ({"cu_seqlens": torch.tensor([0, 4]), "prefix_len": 2, "prefix_sum": torch.ones(2)}, ValueError, "prefix_sum:"),
    ],
)
def test_wrong_packed_arguments(more, error, words):
    with pytest.raises(error, match=words):
        masked_mean_pool(torch.zeros(4, 3), **more)


def test_an_unusable_request_gives_every_backends_reason(monkeypatch):
    hidden, mask = case(1, 2, 3, torch.float32)
    with pytest.raises(ValueError, match="expected 'auto' or one of"):
        masked_mean_pool(hidden, mask, backend="opencl")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match=r"cannot serve a tensor on cpu\. native: .*; cuda: .*; triton: .*; reference: usable"
        ):
            masked_mean_pool(hidden, mask, backend="triton")
    monkeypatch.setenv("DIVERSEEVOL_BACKEND", "reference")
    assert backends.choose("cpu") == "reference"
    if isas():
        monkeypatch.setenv("DIVERSEEVOL_ISA", "avx1024")
        with pytest.raises(ValueError, match="DIVERSEEVOL_ISA: expected one of scalar"):
            masked_mean_pool(hidden, mask, backend="native")
