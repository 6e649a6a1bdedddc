"""logit_stats: the reference against torch's softmax, every backend against float64."""

import contextlib
import math

import numpy as np
import pytest
import torch
from support.gpu import DEVICE, DTYPES, assert_same_products, cuda_works

from diverseevol_fast.ops import LogitStats, backends, logit_stats, reference

# The interpreter computes in numpy, which warns of the infinities and NaNs that are given here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

BACKENDS = backends.OPS["logit_stats"]
SIZES = [(1, 1, 1), (3, 17, 2), (17, 33, 129), (65, 70, 300), (130, 40, 2500)]  # T, D, V
# Of the largest logit: a GPU's matrix units cut off summands in each step of 16, and float32 results are rounded.
ROUNDOFF = 2.0**-20

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def case(tokens: int, dim: int, vocab: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, dim), (vocab, dim), (vocab,))
    return tuple(torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes)


def plain(hidden, weight, bias, dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The statistics [3, T] as torch computes them in `dtype` of the stored values, and the logits [T, V]."""
    logits = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    ordered = logits.sort(dim=1, descending=True).values
    margin = ordered[:, 0] - (ordered[:, 1] if len(weight) > 1 else -float("inf"))
    entropy = -(torch.softmax(logits, dim=1) * torch.log_softmax(logits, dim=1)).sum(dim=1)
    return torch.stack([ordered[:, 0], margin, entropy]), logits


@pytest.fixture(autouse=True)
def usable(request):
    """The test's backend works, or the test is skipped with its reason."""
    backend = request.node.callspec.params.get("backend") if hasattr(request.node, "callspec") else None
    with cuda_works() if backend == "cuda" else contextlib.nullcontext():
        if backend is not None and backends.unusable(backend, DEVICE):
            pytest.skip(f"{backend}: {backends.unusable(backend, DEVICE)}")
        yield


def check(got: LogitStats, hidden, weight, bias) -> None:
    """Of each statistic, the error is at most twice that of torch in float32, and a few roundings of the logits."""
    exact, logits = plain(hidden, weight, bias, torch.float64)
    single, _ = plain(hidden, weight, bias, torch.float32)
    allowed = 2 * (single - exact).abs().amax(dim=1) + ROUNDOFF * (1 + logits.abs().max())
    for statistic, expected, bound in zip(got, exact, allowed.nan_to_num(ROUNDOFF), strict=True):
        assert statistic.dtype == torch.float32
        assert statistic.shape == (len(hidden),)
        finite = torch.isfinite(expected)  # a vocabulary of one has an infinite margin
        assert torch.equal(statistic[~finite].double(), expected[~finite])
        assert ((statistic - expected)[finite].abs() <= bound).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("size", SIZES)
def test_the_reference_is_torchs_softmax(size, scale, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 1000)  # several chunks of both
    hidden, weight, bias = case(*size)
    *got, bad = reference.logit_stats(hidden * scale, weight, bias)
    exact, _ = plain(hidden * scale, weight, bias, torch.float64)
    torch.testing.assert_close(torch.stack(got).double(), exact, rtol=2.0**-23, atol=1e-9)
    assert bad.tolist() == [-1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_error_is_at_most_twice_that_of_torch(backend, dtype, size, has_bias):
    hidden, weight, bias = case(*size, dtype)
    bias = bias if has_bias else None
    check(logit_stats(hidden, weight, bias, backend), hidden, weight, bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_views(backend, dtype):
    hidden, weight, bias = case(40, 60, 120, dtype)
    views = [
        (hidden[::3, 7:40], weight[1::2, 7:40], bias[1::2]),
        (hidden.T[:40], weight[:, ::2][:, :20].repeat(1, 2), bias),
        (hidden[:1].expand(5, -1), weight.T.contiguous().T, bias[:1].expand(120)),
        (hidden[:, 3:4], weight[:, 5:6], None),
    ]
    for view in views:
        check(logit_stats(*view, backend), *view)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("places", [(0, 1), (5, 130), (7, 2049)])
def test_a_tie_of_the_two_largest_has_no_margin(backend, places):
    """Within a tile of the vocabulary, across tiles and across spans."""
    hidden, weight, _ = case(9, 24, 2100)
    weight[list(places)] = 0.0
    bias = torch.zeros(2100, device=DEVICE)
    bias[list(places)] = 500.0
    got = logit_stats(hidden, weight, bias, backend)
    assert got.margin.tolist() == [0.0] * 9
    assert got.largest.tolist() == [500.0] * 9
    torch.testing.assert_close(got.entropy, torch.full((9,), math.log(2.0), device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_logits(backend, dtype):
    hidden, weight, bias = case(33, 50, 1300, dtype)
    hidden = hidden * 1e3
    got = logit_stats(hidden, weight, bias, backend)
    assert plain(hidden, weight, bias, torch.float64)[1].abs().max() > 1e4
    check(got, hidden, weight, bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [0, 1029])
def test_one_dominant_entry_leaves_no_entropy(backend, place):
    hidden, weight, bias = case(5, 8, 1030)
    bias[place] = 1e4
    got = logit_stats(hidden, weight, bias, backend)
    exact, _ = plain(hidden, weight, bias, torch.float64)
    torch.testing.assert_close(torch.stack([got.largest, got.margin]).double(), exact[:2], rtol=2.0**-22, atol=0.0)
    assert got.entropy.abs().max() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 2, 127, 1024, 5000])
def test_equal_logits_have_the_entropy_of_the_vocabulary(backend, vocab):
    hidden, weight, _ = case(3, 16, 1)
    hidden, weight = hidden.mul(8).round(), weight.mul(8).round()  # exact products, whatever their order
    got = logit_stats(hidden, weight.expand(vocab, -1), backend=backend)
    assert got.margin.tolist() == [math.inf if vocab == 1 else 0.0] * 3
    assert got.largest.tolist() == (hidden @ weight[0]).tolist()
    torch.testing.assert_close(got.entropy, torch.full((3,), math.log(vocab), device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens(backend):
    hidden, weight, bias = case(4, 8, 30)
    assert [statistic.shape for statistic in logit_stats(hidden[:0], weight, bias, backend)] == [(0,)] * 3


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tokens_result_does_not_depend_on_the_others(backend, dtype):
    hidden, weight, bias = case(150, 40, 2100, dtype)
    together = torch.stack(logit_stats(hidden, weight, bias, backend))
    apart = torch.stack(logit_stats(hidden[137:140], weight, bias, backend))
    assert_same_products(together[:, 137:140], apart, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_token_is_named(backend, dtype, value):
    hidden, weight, bias = case(150, 20, 1100, dtype)
    hidden[140, 3] = hidden[77, 19] = value
    with pytest.raises(ValueError, match="hidden: token 77 has a logit that is not finite"):
        logit_stats(hidden, weight, bias, backend)
    bias[1090] = value
    with pytest.raises(ValueError, match="token 0 "):
        logit_stats(hidden, weight, bias, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_differences_beyond_float32_are_not_finite(backend):
    hidden = torch.tensor([[1.0], [1.0], [3e38]], device=DEVICE)
    weight = torch.tensor([[1.0], [-1.0]], device=DEVICE)
    with pytest.raises(ValueError, match="token 2 "):
        logit_stats(hidden, weight, backend=backend)
    hidden[2] = 1.5e38
    assert logit_stats(hidden, weight, backend=backend).entropy[2] == 0.0


@pytest.mark.skipif(DEVICE == "cpu", reason="measures GPU memory")
def test_logits_never_exist_at_once():
    hidden, weight, _ = case(4096, 64, 32_000, torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    logit_stats(hidden, weight, backend="triton")
    assert torch.cuda.max_memory_allocated() - before < 4096 * 32_000 * 4 / 100


def test_the_result_has_no_gradient():
    hidden, weight, bias = case(4, 8, 30)
    assert not logit_stats(hidden.requires_grad_(), weight.requires_grad_(), bias).entropy.requires_grad


def test_the_automatic_choice_is_a_backend_of_the_op(monkeypatch):
    monkeypatch.delenv("DIVERSEEVOL_BACKEND", raising=False)
    assert backends.choose("cpu", op="logit_stats") in BACKENDS


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((np.zeros((2, 3)), torch.zeros(4, 3)), TypeError, "hidden: expected a torch.Tensor, got ndarray"),
        ((torch.zeros(2, 3), [[1.0]]), TypeError, "weight: expected a torch.Tensor, got list"),
        ((torch.zeros(2, 3).double(), torch.zeros(4, 3).double()), TypeError, "hidden: expected float32, .*float64"),
        ((torch.zeros(2, 3), torch.zeros(4, 3).half()), TypeError, "weight: expected torch.float32 .*torch.float16"),
        ((torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4).half()), TypeError, "bias: expected torch.float32"),
        ((torch.zeros(2, 3), torch.zeros(4, 3, device="meta")), ValueError, "weight: expected device cpu, got meta"),
        ((torch.zeros(3), torch.zeros(4, 3)), ValueError, r"hidden: expected shape \[T, D\] .* got \(3,\)"),
        ((torch.zeros(2, 0), torch.zeros(4, 0)), ValueError, r"hidden: expected shape .* got \(2, 0\)"),
        ((torch.zeros(2, 3), torch.zeros(4, 5)), ValueError, r"weight: expected shape \[V, 3\] .* got \(4, 5\)"),
        ((torch.zeros(2, 3), torch.zeros(0, 3)), ValueError, r"weight: expected shape .* got \(0, 3\)"),
        (
            (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3)),
            ValueError,
            r"bias: expected shape \(4,\), got \(3,\)",
        ),
    ],
)
def test_wrong_arguments(given, error, words):
    with pytest.raises(error, match=words):
        logit_stats(*given)
