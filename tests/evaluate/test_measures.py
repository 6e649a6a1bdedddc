"""The measures of diversity against plain formulas, the vendi-score package, and known values."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from diverseevol_fast._common import vendi_score as vendi_module
from diverseevol_fast._common.vendi_score import kernel_spectra, vendi_score
from diverseevol_fast.evaluate import measures
from diverseevol_fast.evaluate.measures import MEASURES, TINY, cell_count, describe, entropy, measure_nested, partition


def cosine(a, b):
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    if 0 in lengths:
        return float(lengths == (0, 0))
    return float(a @ b / lengths[0] / lengths[1])


def brute_force(x, rows, cells):
    """Every measure by its formula, in loops over pairs."""
    x = x.astype(np.float64)
    n, size = len(x), len(rows)
    kernel = np.array([[cosine(x[i], x[j]) for j in rows] for i in rows])
    shares = np.linalg.eigvalsh(kernel) / size
    shares = shares[shares > 1e-12]
    to_subset = [min(np.linalg.norm(x[i] - x[j]) for j in rows) for i in range(n)]
    cell_shares = np.array([np.mean(cells[rows] == cell) for cell in set(cells[rows].tolist())])
    values = {
        "vendi": np.exp(-(shares * np.log(shares)).sum()),
        "vendi_2": 1 / (shares**2).sum(),
        "vendi_inf": 1 / shares.max(),
        "covering_radius": max(to_subset),
        "mean_cosine": None,
        "nearest_distance": None,
        "chamfer": np.mean(to_subset),
        "facility_location": np.mean([max(cosine(x[i], x[j]) for j in rows) for i in range(n)]),
        "log_determinant": np.linalg.slogdet(np.eye(size) + kernel)[1],
        "partition_entropy": -(cell_shares * np.log(cell_shares)).sum(),
        "novelsum": None,
    }
    if size > 1:
        others = {i: [j for j in rows if j != i] for i in rows}
        values["mean_cosine"] = np.mean([cosine(x[i], x[j]) for i in rows for j in others[i]])
        values["nearest_distance"] = np.mean([min(np.linalg.norm(x[i] - x[j]) for j in others[i]) for i in rows])
        values["novelsum"] = novelsum(x, rows, others)
    return values


def novelsum(x, rows, others):
    expansion = {}
    for j in rows:
        nearest = sorted(1 - cosine(x[j], other) for other in x if (other != x[j]).any())[:10]
        expansion[j] = (1 / (np.mean(nearest or [0.0]) + TINY)) ** 0.5
    novelties = []
    for i in rows:
        by_rank = sorted(others[i], key=lambda j: 1 - cosine(x[i], x[j]))
        weights = [1 / (rank + 1) for rank in range(len(by_rank))]
        distances = [expansion[j] * (1 - cosine(x[i], x[j])) for j in by_rank]
        novelties.append(np.average(distances, weights=weights))
    return np.mean(novelties)


def gaussian(n, width, seed=0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(n, width)) + offset).astype(np.float32)


def with_copies():
    x = gaussian(30, 5)
    x[[3, 4, 20]] = x[0]
    x[7] = 2 * x[0]  # the same direction
    x[8] = -x[0]
    return x


def with_zeros():
    x = gaussian(25, 6, offset=0.5)
    x[[2, 3, 10]] = 0
    x[10] = -0.0  # equal to the others, in other bits
    return x


CASES = {
    "more rows than dimensions": (gaussian(40, 4, offset=1.0), [1, 2, 5, 17]),
    "more dimensions than rows": (gaussian(40, 33), [3, 9, 20]),
    "a size equal to the dimensions": (gaussian(30, 8), [8]),
    "copies": (with_copies(), [1, 4, 11, 25]),
    "zeros": (with_zeros(), [2, 5, 12]),
    "all rows are the subset": (gaussian(12, 3), [6, 12]),
    "one row in all": (gaussian(1, 3), [1]),
    "one dimension": (gaussian(9, 1), [2, 5]),
    "far from the origin": (gaussian(20, 6, offset=1e4), [4, 9]),
}


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    if request.param == "many tiles":
        monkeypatch.setattr(measures, "TILE", 3)
        monkeypatch.setattr(measures, "PAIRS", 40)
        monkeypatch.setattr(vendi_module, "CHUNK_ELEMENTS", 16)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("case", CASES)
def test_every_measure_is_its_formula(case):
    x, sizes = CASES[case]
    rng = np.random.default_rng(1)
    rows = np.arange(len(x)) if case in ("copies", "zeros") else rng.permutation(len(x))
    rows, cells = rows[: sizes[-1]], rng.integers(0, 4, len(x))
    counts = []
    measured = measure_nested(torch.from_numpy(x), torch.from_numpy(rows), sizes, cells, counts.append)
    assert sum(counts) == len(x) + sizes[-1]
    for values, size in zip(measured, sizes, strict=True):
        assert list(values) == list(MEASURES)
        expected = brute_force(x, rows[:size], cells)
        # cosines of rows 1e4 from the origin differ by 1e-8: as much as float64 has, squared
        tolerance = {"rel": 1e-5, "abs": 1e-9} if case == "far from the origin" else {"rel": 1e-9, "abs": 1e-12}
        for name in MEASURES:
            wanted = expected[name]
            assert values[name] == (wanted if wanted is None else pytest.approx(wanted, **tolerance)), (size, name)


@pytest.mark.parametrize("stored", ["float16", "memory map"])
def test_stored_rows_are_measured_as_they_are(stored, tmp_path):
    x, cells, rows = gaussian(50, 7), np.zeros(50, int), torch.arange(0, 20, 2)
    if stored == "float16":
        stored = torch.from_numpy(x.astype(np.float16))
        expected = measure_nested(stored.float(), rows, [4, 10], cells)
    else:
        np.save(tmp_path / "x.npy", x)
        stored = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
        expected = measure_nested(torch.from_numpy(x), rows, [4, 10], cells)
    assert measure_nested(stored, rows, [4, 10], cells) == expected


def test_a_smaller_size_is_measured_the_same_alone():
    x, cells, rows = torch.from_numpy(gaussian(60, 6)), np.arange(60) % 5, torch.randperm(60)[:30]
    nested = measure_nested(x, rows, [2, 6, 7, 30], cells)
    for values, size in zip(nested, [2, 6, 7, 30], strict=True):
        (alone,) = measure_nested(x, rows[:size], [size], cells)
        assert values == pytest.approx(alone, rel=1e-12)


def test_the_order_of_rows_makes_no_difference():
    x = gaussian(50, 6)
    x[40:] = x[:10]  # copies among all rows, and within the subset
    rows, shuffled, cells = np.r_[0:5, 38:45], np.random.default_rng(2).permutation(50), np.arange(50) % 7
    (values,) = measure_nested(torch.from_numpy(x), torch.from_numpy(rows), [12], cells)
    indices = np.argsort(shuffled)[rows[::-1]].copy()
    (moved,) = measure_nested(torch.from_numpy(x[shuffled]), torch.from_numpy(indices), [12], cells[shuffled])
    assert values == pytest.approx(moved, rel=1e-12)


def test_known_answers_of_unlike_rows():
    """The rows are unit vectors of 6 axes, all of them in the subset, so K = I."""
    (values,) = measure_nested(torch.eye(6), torch.arange(6), [6], np.arange(6))
    expected = {
        "vendi": 6,
        "vendi_2": 6,
        "vendi_inf": 6,
        "covering_radius": 0,
        "mean_cosine": 0,
        "nearest_distance": math.sqrt(2),
        "chamfer": 0,
        "facility_location": 1,
        "log_determinant": 6 * math.log(2),
        "partition_entropy": math.log(6),
        "novelsum": 1,
    }
    assert values == pytest.approx(expected, abs=TINY)


def test_known_answers_of_like_rows():
    """Copies have distance exactly 0 and finite densities; row 7 has the opposite direction."""
    x = torch.tensor([[0.1, 0.7, -0.3]]).repeat(20, 1)
    x[7] = -x[7]
    (values,) = measure_nested(x, torch.tensor([0, 1, 2, 19]), [4], np.zeros(20, int))
    exact = {"nearest_distance": 0.0, "partition_entropy": 0.0, "covering_radius": 2 * float(x[7].double().norm())}
    assert {name: values[name] for name in exact} == exact
    expected = {
        "vendi": 1,
        "vendi_2": 1,
        "vendi_inf": 1,
        "mean_cosine": 1,
        "log_determinant": math.log(5),
        "novelsum": 0,
        "chamfer": exact["covering_radius"] / 20,
        "facility_location": 18 / 20,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_novelsum_of_three_rows_by_hand():
    """The rows are axes a, b and their bisector m; the K nearest rows of each are all others."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    near, far = 1 - math.sqrt(0.5), 1.0
    outer, middle = ((near + far) / 2) ** -0.5, near**-0.5
    of_axis = (near * middle + far * outer / 2) / 1.5
    of_middle = near * outer
    (values,) = measure_nested(x, torch.arange(3), [3], np.zeros(3, int))
    assert values["novelsum"] == pytest.approx((2 * of_axis + of_middle) / 3, rel=1e-8)  # but for TINY


def test_rows_of_a_narrow_cone_are_neighbors_and_copies_are_not():
    """Angles of 0 and 0.001 have a cosine distance of 5e-7, which alone determines the density: copies do not count."""
    x = torch.tensor([[1.0, 0.0], [math.cos(1e-3), math.sin(1e-3)]], dtype=torch.float64)
    for copies in (1, 15):
        (values,) = measure_nested(x.repeat(copies, 1), torch.arange(2), [2], np.zeros(2 * copies, int))
        assert values["novelsum"] == pytest.approx(5e-7 / (5e-7 + TINY) ** 0.5, rel=1e-6)


def test_more_rows_never_cover_less():
    x, rows = torch.from_numpy(gaussian(80, 5)), torch.randperm(80)[:60]
    measured = measure_nested(x, rows, list(range(1, 61)), np.zeros(80, int))
    for before, after in pairwise(measured):
        for name in ("covering_radius", "chamfer"):
            assert after[name] <= before[name]
        for name in ("facility_location", "log_determinant"):
            assert after[name] >= before[name] - 1e-12


@pytest.mark.parametrize("shape", [(1, 5), (6, 40), (40, 40), (70, 9)])
@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, 3.5, math.inf])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the package uses a deprecated module of SciPy
def test_vendi_score_is_the_packages(shape, q):
    """The package's score_X ignores q; its score_K and score_dual use it."""
    vendi = pytest.importorskip("vendi_score.vendi")
    x = gaussian(*shape, offset=0.3)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    order = "inf" if q == math.inf else q
    ours = vendi_score(torch.from_numpy(x), q)
    if q >= 1 or shape[0] <= shape[1]:  # for q < 1 its rounding errors of zero eigenvalues matter
        assert ours == pytest.approx(vendi.score_K(unit @ unit.T, q=order), rel=1e-9)
    if q >= 1 or shape[0] >= shape[1]:
        assert ours == pytest.approx(vendi.score_dual(unit, q=order, normalize=False), rel=1e-9)


@pytest.mark.parametrize("q", [0, 0.5, 1, 2, 5, math.inf])
def test_vendi_score_known_answers(q):
    assert vendi_score(torch.eye(7), q) == pytest.approx(7, rel=1e-12)
    assert vendi_score(3 * torch.ones(50, 4), q) == pytest.approx(1, rel=1e-12)
    assert vendi_score(torch.eye(5).repeat(8, 1), q) == pytest.approx(5, rel=1e-12)
    assert vendi_score(torch.cat([torch.zeros(1, 5), torch.eye(5)]), q) == pytest.approx(6, rel=1e-12)
    assert vendi_score(torch.zeros(4, 3), q) == 1


def test_vendi_scores_fall_with_the_order():
    x = torch.from_numpy(gaussian(40, 12, offset=0.2))
    scores = [vendi_score(x, q) for q in (0, 0.5, 1, 1.5, 2, 10, math.inf)]
    assert scores[0] == pytest.approx(12)
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 1


def test_spectra_are_those_of_the_kernel():
    x = torch.from_numpy(gaussian(30, 8))
    for size, spectrum in zip([3, 8, 9, 30], kernel_spectra(x, [3, 8, 9, 30]), strict=True):
        units = torch.nn.functional.normalize(x[:size].double())
        expected = torch.linalg.eigvalsh(units @ units.T).flip(0)[: len(spectrum)].flip(0)
        assert len(spectrum) == min(size, 8)
        torch.testing.assert_close(spectrum, expected)


@pytest.mark.parametrize("shape", [(0, 4), (5,)])
def test_vendi_score_wants_rows(shape):
    with pytest.raises(ValueError, match="expected a matrix of at least"):
        vendi_score(torch.zeros(shape))


@pytest.mark.parametrize("width", [4, 1000])
def test_vendi_score_names_the_row_that_is_not_finite(width, monkeypatch):
    monkeypatch.setattr(vendi_module, "CHUNK_ELEMENTS", 64)
    x = torch.ones(300, width)
    x[270, 3] = torch.inf
    with pytest.raises(ValueError, match="row 270 is not finite"):
        vendi_score(x)


@pytest.mark.parametrize("q", [-1, math.nan])
def test_vendi_score_wants_an_order(q):
    with pytest.raises(ValueError, match="q: expected"):
        vendi_score(torch.eye(3), q)


def test_the_partition_is_seeded_and_finds_clusters():
    centers = 50 * torch.eye(8)[:5]
    x = (centers.repeat_interleave(20, dim=0) + torch.from_numpy(gaussian(100, 8))).float()
    cells = partition(x, seed=3)
    assert cells.shape == (100,)
    assert len(set(cells.tolist())) <= cell_count(100) == 10
    for start in range(0, 100, 20):  # no cell holds rows of two clusters
        assert not set(cells[start : start + 20].tolist()) & set(cells[start + 20 :].tolist())
    np.testing.assert_array_equal(cells, partition(x, seed=3))


def test_a_partition_of_copies_is_one_cell():
    cells = partition(torch.ones(60, 3), seed=0)
    assert entropy(np.bincount(cells)) == 0.0


@pytest.mark.parametrize(("rows", "cells"), [(1, 1), (9, 1), (20, 2), (999, 99), (50_000, 100)])
def test_number_of_cells(rows, cells):
    assert cell_count(rows) == cells
    assert f"{cells} k-means cells" in describe(rows)["partition_entropy"]["what"]
    assert f"at most {math.log(cells):.3f}" in describe(rows)["partition_entropy"]["what"]


def test_measures_say_what_they_are():
    described = describe(100)
    assert list(described) == list(MEASURES)
    lower = {name for name, measure in described.items() if not measure["higher_is_more_diverse"]}
    assert lower == {"covering_radius", "mean_cosine", "chamfer"}
    assert not [name for name, measure in described.items() if "\n" in measure["what"] or "{" in measure["what"]]
