"""kcenter: the picks of float64 greedy, checked against a brute force written separately."""

import numpy as np
import pytest
import torch

from diverseevol_fast import KCenterStream, kcenter
from diverseevol_fast.ops import reference


def brute_force(x, k, centers):
    """Greedy over the full matrix of exact distances, in integers or in extended precision."""
    x = np.asarray(x, dtype=np.longdouble)
    d = ((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)
    nearest = d[:, list(centers)].min(1)
    nearest[list(centers)] = -1
    picks = []
    for _ in range(k):
        pick = int(nearest.argmax())
        picks.append(pick)
        nearest = np.minimum(nearest, d[pick])
        nearest[pick] = -1
    return picks


def gaussian(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def data(kind, n=120, d=24):
    x = gaussian(n, d)
    if kind == "duplicates":
        return x[np.random.default_rng(1).integers(0, n // 4, n)]
    if kind == "near-duplicates":
        base = x[np.random.default_rng(1).integers(0, n // 4, n)]
        return base * (1 + 1e-6 * gaussian(n, 1, seed=2))
    if kind == "offset":
        return x + np.float32(1e3)
    if kind == "unit":
        return x / np.linalg.norm(x, axis=1, keepdims=True)
    if kind == "constant":
        return np.ones_like(x)
    if kind == "integers":
        return np.random.default_rng(1).integers(-3, 4, (n, d)).astype(np.float32)
    return x


KINDS = ["gaussian", "duplicates", "near-duplicates", "offset", "unit", "constant", "integers"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_size", [None, 16])
def test_picks_are_those_of_float64_greedy(kind, block_size):
    x = data(kind)
    result = kcenter(x, 40, [3, 77, 11], block_size=block_size)
    assert result.indices.tolist() == brute_force(x, 40, [3, 77, 11])
    assert result.indices.dtype == np.int64
    assert result.sqdist.dtype == np.float64
    assert (np.diff(result.sqdist) <= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_near_duplicates_with_a_common_offset(kind):
    x = data(kind) + np.float32(1e3)
    assert kcenter(x, 20, [0], block_size=16).indices.tolist() == brute_force(x, 20, [0])


def test_sqdist_is_the_squared_distance_when_picked():
    x = gaussian(50, 7)
    result = kcenter(x, 10, [4])
    chosen = [4]
    for pick, sqdist in zip(result.indices, result.sqdist, strict=True):
        expected = min(((x[pick].astype(np.float64) - x[c]) ** 2).sum() for c in chosen)
        assert sqdist == pytest.approx(expected, rel=1e-14)
        chosen.append(pick)


@pytest.mark.parametrize("block_size", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_of_every_dtype(dtype, block_size):
    x = torch.from_numpy(gaussian(80, 16)).to(dtype)
    before = x.clone()
    assert kcenter(x, 15, [1], block_size=block_size).indices.tolist() == brute_force(x.double().numpy(), 15, [1])
    assert torch.equal(x, before)


def as_float64(x):
    """Values that float32 does not have: the picks are those of the rounded values."""
    return x.astype(np.float64) + 1e-9


@pytest.mark.parametrize(
    "make",
    [
        as_float64,
        lambda x: as_float64(x).tolist(),
        lambda x: tuple(as_float64(x)),
        lambda x: torch.from_numpy(as_float64(x)),
        lambda x: as_float64(x).astype(">f8"),
        lambda x: x.astype(">f4"),
        lambda x: x[::-1].copy()[::-1],
        lambda x: torch.from_numpy(as_float64(x)).requires_grad_(),
    ],
)
def test_other_numbers_are_rounded_to_float32(make):
    x = gaussian(60, 5)
    given = make(x)
    rounded = torch.tensor(np.asarray(given.detach() if isinstance(given, torch.Tensor) else given).astype("f4"))
    expected, sqdist = reference.kcenter(rounded, 9, [1])
    result = kcenter(make(x), 9, [1])
    assert result.indices.tolist() == expected
    assert result.sqdist.tolist() == sqdist
    stream = KCenterStream(make(x[:1]), 59)
    stored = stream.push_embeddings(make(x[1:]))
    assert torch.equal(stored, rounded[1:])


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int16, bool])
def test_integers_are_taken(dtype):
    x = (gaussian(60, 5) * 40).astype(dtype)
    expected, _ = reference.kcenter(torch.from_numpy(x.astype(np.float32)), 9, [1])
    for form in (x, x.tolist(), torch.from_numpy(x)):
        assert kcenter(form, 9, [1]).indices.tolist() == expected


def test_a_result_is_shown_in_one_short_line():
    x = gaussian(500, 8)
    first = kcenter(x, 400)
    shown = repr(first)
    assert shown.startswith(f"KCenterResult(400 picks: {first.indices[0]}, {first.indices[1]}, {first.indices[2]}, ...")
    assert f"last sqdist {first.sqdist[-1]:.4g}" in shown
    for result in (first, kcenter(x, 0, [1]), kcenter(x, 2, [1]), kcenter(x, 1)):
        assert "\n" not in repr(result)
        assert len(repr(result)) < 130
    assert "no picks" in repr(kcenter(x, 0, [1]))
    assert "last sqdist inf" in repr(kcenter(x, 1))
    stream = KCenterStream(x[:5], 500, exclude=range(5))
    stream.push_embeddings(x[5:30], rows=range(5, 30))
    assert repr(stream) == "KCenterStream(25 of 495 candidates, 8 columns of float32, 0 picked)"


def test_without_centers_a_seeded_row_is_the_first_pick():
    x = gaussian(60, 5)
    result = kcenter(x, 8, seed=5)
    first = int(result.indices[0])
    assert np.isinf(result.sqdist[0])
    assert result.indices[1:].tolist() == brute_force(x, 7, [first])
    assert kcenter(x, 8, seed=5).indices.tolist() == result.indices.tolist()
    assert len({int(kcenter(x, 1, seed=seed).indices[0]) for seed in range(20)}) > 1
    assert kcenter(x, 0).indices.tolist() == []


def test_masks_views_and_memory_maps(tmp_path):
    x = gaussian(90, 12)
    expected = brute_force(x, 12, [2, 9])
    mask = np.zeros(90, dtype=bool)
    mask[[2, 9]] = True
    np.save(tmp_path / "x.npy", x)
    wide = np.zeros((180, 24), dtype=np.float32)
    wide[::2, ::2] = x
    for form in (
        x,
        np.asfortranarray(x),
        wide[::2, ::2],
        torch.from_numpy(x),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
    ):
        for centers in ([2, 9], mask, torch.tensor([2, 9]), np.array([2, 9], dtype=np.int32)):
            for block_size in (None, 8):
                assert kcenter(form, 12, centers, block_size=block_size).indices.tolist() == expected


def test_every_row_can_be_picked():
    x = data("duplicates", n=20)
    assert sorted([*kcenter(x, 17, [0, 5, 7], block_size=8).indices.tolist(), 0, 5, 7]) == list(range(20))


@pytest.mark.parametrize(
    ("x", "k", "centers", "error", "words"),
    [
        ("rows", 1, None, TypeError, "x: expected an array, a tensor or a list of rows of numbers, got str"),
        ([[1.0, 2.0], [1.0]], 1, None, TypeError, "x: expected rows of numbers, all of one length, got list: "),
        ([["1"]], 1, None, TypeError, "x: expected rows of numbers, all of one length, got ndarray of <U1: "),
        (np.array([[None, 1]]), 1, None, TypeError, "x: expected rows of numbers, .* got ndarray of object: "),
        (np.zeros((3, 2)) + 1j, 1, None, TypeError, "x: expected a dense tensor of real numbers, got torch.complex128"),
        (torch.zeros(3, 2).to_sparse(), 1, None, TypeError, "x: expected a dense tensor of real numbers, got .*sparse"),
        ([1.0, 2.0], 1, None, ValueError, r"x: expected shape \[N, D\] .* got \(2,\)"),
        (np.array([[1.0], [1e300]]), 1, None, ValueError, "x: row 1 holds a value that is not finite"),
        (np.zeros(3, dtype=np.float32), 1, None, ValueError, r"\[N, D\]"),
        (np.zeros((0, 2), dtype=np.float32), 0, None, ValueError, r"\(0, 2\)"),
        (np.zeros((2, 0), dtype=np.float32), 1, None, ValueError, r"\(2, 0\)"),
        (gaussian(5, 2), 6, None, ValueError, "k: expected 0 to 5"),
        (gaussian(5, 2), 4, [0, 1], ValueError, "k: expected 0 to 3"),
        (gaussian(5, 2), -1, None, ValueError, "got -1"),
        (gaussian(5, 2), 1.5, None, TypeError, "k: expected an integer"),
        (gaussian(5, 2), 1, [5], ValueError, "from 0 to 4, got 5"),
        (gaussian(5, 2), 1, [-1], ValueError, "got -1"),
        (gaussian(5, 2), 1, [2, 2], ValueError, "row 2 is given more than once"),
        (gaussian(5, 2), 1, [0.5], TypeError, "row numbers or a boolean mask"),
        (gaussian(5, 2), 1, [], ValueError, "at least one row"),
        (gaussian(5, 2), 1, np.ones(4, dtype=bool), ValueError, r"mask of shape \(5,\)"),
    ],
)
def test_wrong_arguments(x, k, centers, error, words):
    with pytest.raises(error, match=words):
        kcenter(x, k, centers)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_row_that_is_not_finite_is_named(value):
    x = gaussian(9000, 4)
    x[8000, 1] = value
    x[8500, 0] = value
    with pytest.raises(ValueError, match="x: row 8000 holds"):
        kcenter(x, 3)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 100])
def test_halving_sum_order(width):
    values = torch.from_numpy(np.random.default_rng(width).standard_normal((5, width)))
    expected = []
    for row in values.tolist():
        row += [0.0] * ((1 << (width - 1).bit_length()) - width)
        while len(row) > 1:
            half = len(row) // 2
            row = [row[i] + row[i + half] for i in range(half)]
        expected.append(row[0])
    assert reference.halving_sum(values).tolist() == expected
