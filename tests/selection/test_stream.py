"""KCenterStream: batches in any order, the same picks as kcenter on the whole."""

import numpy as np
import pytest
import torch

from diverseevol_fast import KCenterStream, masked_mean_pool
from diverseevol_fast.ops import backends, min_sqdist, pool_min_sqdist, reference

BACKENDS = [
    *([] if backends.native_unavailable() else ["native"]),
    "reference",
    *([] if backends.unusable("triton", "cpu") else ["triton"]),
]


def states(n, dim, seed=0):
    """Token states and masks of n rows, and their means."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 9, dim, generator=generator) + 2 * torch.randn(n, 1, dim, generator=generator)
    mask = torch.rand(n, 9, generator=generator) < 0.7
    mask[:, 0] = True
    return hidden, mask


def expected(centers, candidates, k):
    """The specification, with the centers before the candidates."""
    together = torch.cat([centers, candidates.float()])
    indices, sqdist = reference.kcenter(together, k, list(range(len(centers))))
    return [index - len(centers) for index in indices], sqdist


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["states", "packed", "embeddings"])
def test_same_picks_as_on_the_whole(backend, dtype, how):
    n, k = (400, 150) if backend != "triton" else (60, 12)  # its interpreter is slow
    hidden, mask = states(n, 24)
    centers = masked_mean_pool(*states(17 if backend != "triton" else 3, 24, seed=1))
    pooled = masked_mean_pool(hidden, mask, backend=backend)
    stream = KCenterStream(centers, n, store=torch.empty(n, 24, dtype=dtype), backend=backend)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    for rows in order.split(33):
        if how == "states":
            stream.push(hidden[rows], mask[rows], rows=rows)
        elif how == "packed":
            lengths = mask[rows].sum(1)
            limits = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            stream.push(hidden[rows][mask[rows]], cu_seqlens=limits, rows=rows)
        else:
            stream.push_embeddings(pooled[rows].numpy(), rows=rows.tolist())
    assert torch.equal(stream.store, pooled.to(dtype))
    indices, sqdist = expected(centers, pooled.to(dtype), k)
    first = stream.select(k // 3)
    assert first.passes == min(256, n) / n  # the block alone
    rest = stream.select(k - k // 3)
    assert first.indices.tolist() + rest.indices.tolist() == indices
    assert first.sqdist.tolist() + rest.sqdist.tolist() == sqdist


def test_in_order_into_a_memory_map_until_a_radius(tmp_path):
    hidden, mask = states(50, 8)
    centers = masked_mean_pool(*states(3, 8, seed=1))
    store = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(50, 8))
    stream = KCenterStream(centers, 50, store=store)
    for start in range(0, 50, 20):
        stream.push(hidden[start : start + 20], mask[start : start + 20])
    pooled = masked_mean_pool(hidden, mask)
    np.testing.assert_array_equal(store, pooled.numpy())
    indices, sqdist = expected(centers, pooled, 50)
    radius = sqdist[11] ** 0.5 + 1e-6
    assert stream.select(None, radius=radius).indices.tolist() == indices[:11]
    assert stream.select(39).indices.tolist() == indices[11:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pool_min_sqdist_is_both_ops(backend):
    hidden, mask = states(130, 40)
    centers = masked_mean_pool(*states(5, 40, seed=1))
    offset = centers.mean(0)
    together, apart = (torch.full((130,), float("inf")) for _ in range(2))
    pooled = pool_min_sqdist(hidden, mask, centers=centers, offset=offset, bound=together, backend=backend)
    assert torch.equal(pooled, masked_mean_pool(hidden, mask, backend=backend))
    min_sqdist(pooled, centers, offset, apart, backend=backend)
    if backend == "triton":  # float32 products in the one, bfloat16 in the other
        exact = torch.full((130,), float("inf"))
        reference.min_sqdist(pooled, centers, exact)
        assert (together >= exact).all()
        assert (together <= apart).all()
    else:
        assert torch.equal(together, apart)
    mask[3] = False
    with pytest.raises(ValueError, match="mask: row 3 has no token"):
        pool_min_sqdist(hidden, mask, centers=centers, offset=offset, bound=together, backend=backend)
    mask[3], hidden[7, 0] = True, float("nan")
    with pytest.raises(ValueError, match="row 7"):
        pool_min_sqdist(hidden, mask, centers=centers, offset=offset, bound=together, backend=backend)


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("selected", [False, True])
def test_inference_mode_may_begin_and_end_between_calls(made, pushed, selected):
    generator = torch.Generator().manual_seed(0)
    centers, candidates = torch.randn(5, 16, generator=generator), torch.randn(300, 16, generator=generator)
    with torch.inference_mode(made):
        stream = KCenterStream(centers, n=300)
    with torch.inference_mode(pushed):
        for part in candidates.split(50):
            stream.push_embeddings(part)
    with torch.inference_mode(selected):
        assert stream.select(10).indices.tolist() == expected(centers, candidates, 10)[0]


def test_mistakes():
    centers = torch.randn(2, 4)
    stream = KCenterStream(centers, 6)
    stream.push_embeddings(torch.randn(2, 4), rows=[4, 1])
    for rows, words in (
        ([1, 2], "candidate 1 was pushed twice"),
        ([2, 2], "candidate 2 was pushed twice"),
        ([2, 6], "from 0 to 5, got 6"),
        ([2], "2 numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            stream.push_embeddings(torch.randn(2, 4), rows=rows)
    with pytest.raises(ValueError, match="expected 4 columns, got 5"):
        stream.push_embeddings(torch.randn(1, 5))
    with pytest.raises(ValueError, match="hidden: expected 4 columns, got 8"):
        stream.push(torch.randn(1, 3, 8), torch.ones(1, 3))
    with pytest.raises(ValueError, match="n: 6 candidates were announced, and 7 have come"):
        stream.push_embeddings(torch.randn(5, 4))
    with pytest.raises(ValueError, match="4 of 6 candidates have not been pushed"):
        stream.select(1)
    for arguments, words in (
        ({"centers": torch.full((1, 4), float("nan")), "n": 3}, "centers: expected finite"),
        ({"centers": centers[:0], "n": 3}, r"centers: expected shape \[N, D\]"),
        ({"centers": torch.ones(1, 1 << 16), "n": 3}, "expected fewer than 65536 columns"),
        ({"centers": centers, "n": 0}, "n: expected an integer"),
        ({"centers": centers, "n": 3, "store": torch.empty(3, 5)}, "store: expected shape"),
    ):
        with pytest.raises(ValueError, match=words):
            KCenterStream(**arguments)
