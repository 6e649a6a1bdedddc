"""Each op on every ISA and in torch, with pytest-benchmark: pytest bench --benchmark-enable [--benchmark-json FILE].

Every result is checked before it is timed.
"""

import pytest
import torch

from diverseevol_fast import _native
from diverseevol_fast.ops import masked_mean_pool, min_sqdist, pick_block, reference, update_argmax

ISAS = _native.usable_isas()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(params=[*ISAS, "torch"])
def isa(request, monkeypatch):
    if request.param != "torch":
        monkeypatch.setenv("DIVERSEEVOL_ISA", request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.benchmark(group="masked_mean_pool B=32 T=512 D=1,024")
def test_masked_mean_pool(benchmark, isa, dtype):
    hidden = torch.randn(32, 512, 1024).to(DTYPES[dtype])
    mask = torch.arange(512) < torch.randint(100, 513, (32, 1))

    def in_torch():
        return (hidden * mask[:, :, None]).sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)

    pool = in_torch if isa == "torch" else lambda: masked_mean_pool(hidden, mask, backend="native")
    torch.testing.assert_close(pool(), reference.masked_mean_pool(hidden, mask), atol=1e-4, rtol=1e-3)
    benchmark(pool)


@pytest.mark.parametrize("centers", [32, 128])
@pytest.mark.benchmark(group="min_sqdist N=8,192 D=1,024")
def test_min_sqdist(benchmark, isa, centers):
    x = torch.randn(8192, 1024)
    chosen, offset = x[:centers].clone(), x.mean(dim=0)

    def in_torch():
        products = torch.addmm((chosen * chosen).sum(1), x, chosen.T, alpha=-2)
        return products.min(dim=1).values + (x * x).sum(1)

    def ours():
        bound = torch.full((len(x),), float("inf"))
        min_sqdist(x, chosen, offset, bound, backend="native")
        return bound

    exact = torch.full((200,), float("inf"))
    reference.min_sqdist(x[:200], chosen, exact)
    run = in_torch if isa == "torch" else ours
    torch.testing.assert_close(run()[:200], exact, atol=20, rtol=0)
    benchmark(run)


@pytest.mark.benchmark(group="update_argmax N=20,000 D=384")
def test_update_argmax(benchmark, isa):
    x = torch.randn(20_000, 384)

    def in_torch():
        return int(torch.cdist(x, x[:1], compute_mode="donot_use_mm_for_euclid_dist").argmax())

    def ours():
        return update_argmax(x, x[0], torch.full((len(x),), float("inf"), dtype=torch.float64), backend="native")

    run = in_torch if isa == "torch" else ours
    assert run() == reference.update_argmax(x, x[0], torch.full((len(x),), float("inf"), dtype=torch.float64))
    benchmark(run)


@pytest.mark.benchmark(group="pick_block B=256 M=100 D=1,024, 100 picks")
def test_pick_block(benchmark, isa):
    x = torch.randn(356, 1024)
    rows, centers, offset = x[100:].clone(), x[:100].clone(), x.mean(dim=0)

    def in_torch():
        nearest, picks = torch.cdist(rows, centers).min(dim=1).values, []
        between = torch.cdist(rows, rows)
        for _ in range(100):
            picks.append(int(nearest.argmax()))
            nearest = torch.minimum(nearest, between[picks[-1]])
        return picks

    def ours():
        bound = torch.full((256,), float("inf"))
        return pick_block(rows, centers, offset, bound, -1.0, -1.0, 100, backend="native")[0].tolist()

    run = in_torch if isa == "torch" else ours
    expected = reference.pick_block(rows, centers, torch.full((256,), float("inf")), -1.0, -1.0, 100)[0].tolist()
    assert run() == expected
    benchmark(run)
