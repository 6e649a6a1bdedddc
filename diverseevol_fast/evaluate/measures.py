"""Measures of the diversity of a subset of embeddings, by itself and beside all rows, without a matrix of all pairs.

A row of zeros has no direction: its cosine with another row of zeros is defined as 1, with any other row as 0.
Arithmetic is in float64. Distances are Euclidean and not squared. Reported distances are computed by direct difference,
so that copies of a row have distance 0.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from .._common.errors import InputError
from .._common.vendi_score import kernel_spectra, unit_rows, vendi_of_spectrum

TILE = 1024  # rows and columns of a matrix of products
PAIRS = 1 << 22  # maximum elements of a matrix of a tile's rows x a whole subset
CELLS = 100  # maximum number of the partition's cells
ROWS_PER_CELL = 10  # minimum of the average
NEIGHBORS = 10  # NovelSum's K; this, alpha and beta are those of its paper
ALPHA = 1.0
BETA = 0.5
TINY = 1e-9  # keeps a density finite where all neighbors have the same direction

Values = dict[str, float | None]  # by the measures' names; None: the measure needs two rows


@dataclass(frozen=True)
class Measure:
    """The title and the meaning of a measure."""

    title: str
    head: str  # of a table's column
    higher_is_more_diverse: bool
    what: str  # one line; {cells}: number of the partition's cells, {most}: maximum of its entropy


MEASURES = {
    "vendi": Measure(
        "Vendi Score",
        "vendi",
        True,
        "exp of the Shannon entropy of the eigenvalues of K / n, K the cosine kernel: how many unlike rows there are",
    ),
    "vendi_2": Measure(
        "Vendi Score, q = 2", "vendi 2", True, "as the Vendi Score, of order 2: common kinds of rows count more"
    ),
    "vendi_inf": Measure(
        "Vendi Score, q = infinity",
        "vendi inf",
        True,
        "as the Vendi Score, of infinite order: 1 over the share of the largest eigenvalue",
    ),
    "covering_radius": Measure(
        "Covering radius", "radius", False, "largest distance of any row of the data to its nearest row of the subset"
    ),
    "mean_cosine": Measure(
        "Mean pairwise cosine", "mean cos", False, "mean cosine of the pairs of different rows of the subset"
    ),
    "nearest_distance": Measure(
        "Nearest-neighbor distance", "nearest", True, "mean distance of the subset's rows to the nearest other one"
    ),
    "chamfer": Measure(
        "Chamfer distance, data to subset",
        "chamfer",
        False,
        "mean distance, not squared, of all rows of the data to their nearest row of the subset",
    ),
    "facility_location": Measure(
        "Facility location",
        "facility",
        True,
        "mean over all rows of the data of the largest cosine with a row of the subset",
    ),
    "log_determinant": Measure(
        "Log-determinant",
        "log det",
        True,
        "log det(I + K), K the cosine kernel of the subset: from log(1 + n) to n log 2",
    ),
    "partition_entropy": Measure(
        "Partition entropy",
        "entropy",
        True,
        "entropy in nats of the subset's shares of {cells} k-means cells of the data; at most {most:.3f}",
    ),
    "novelsum": Measure(
        "NovelSum",
        "novelsum",
        True,
        "mean over the subset's rows of the mean cosine distance to its other rows, weighted by 1 / rank; each "
        f"distance times (that other row's mean distance to its {NEIGHBORS} nearest rows, copies left out)^-{BETA}",
    ),
}


def measure_nested(
    x: torch.Tensor,
    rows: torch.Tensor,
    sizes: list[int],
    cells: np.ndarray,
    update: Callable[[int], None] = lambda count: None,
) -> list[Values]:
    """All measures of each of the subsets rows[:size].

    Args:
        x: [N, D] finite, float32 or float16; may be memory-mapped.
        rows: int64 [n], different indices of x.
        sizes: ascending and different, from 1 to n.
        cells: int [N], the cell of each row of x, as partition returns.
        update: called with the number of rows of x, and later of the subset, that are done: N + n in all.
    """
    subset = x[rows]
    rounds, density = _coverage(x, rows, sizes, update)
    for part in (_spectral(subset, sizes), _cosines(subset, sizes), _within(subset, sizes, density, update)):
        rounds = [values | more for values, more in zip(rounds, part, strict=True)]
    for values, size in zip(rounds, sizes, strict=True):
        values["partition_entropy"] = entropy(np.bincount(cells[rows[:size].numpy()]))
    return [{name: values[name] for name in MEASURES} for values in rounds]


def partition(x: torch.Tensor, seed: int) -> np.ndarray:
    """The k-means cell of each row of x [N, D]: int [N], from 0 to cell_count(N) - 1. seed: 0 to 2^32 - 1.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise InputError("diversity: needs scikit-learn; pip install 'scikit-learn>=1.5'") from error
    kmeans: Any = MiniBatchKMeans
    return kmeans(cell_count(len(x)), random_state=seed, n_init=1).fit(x.float().numpy()).labels_


def cell_count(n: int) -> int:
    """The number of cells of a partition of n rows."""
    return min(CELLS, max(1, n // ROWS_PER_CELL))


def describe(n: int) -> dict[str, dict[str, str | bool]]:
    """Title, direction and meaning of every measure of subsets of n rows, by name."""
    cells = cell_count(n)
    return {
        name: {
            "title": measure.title,
            "higher_is_more_diverse": measure.higher_is_more_diverse,
            "what": measure.what.format(cells=cells, most=math.log(cells)),
        }
        for name, measure in MEASURES.items()
    }


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy in nats of counts / sum(counts); the counts are not all zero."""
    shares = counts[counts > 0] / counts.sum()
    return abs(float(-(shares * np.log(shares)).sum()))  # abs: a single cell gives -0.0


def _spectral(subset: torch.Tensor, sizes: list[int]) -> list[Values]:
    return [
        {
            "vendi": vendi_of_spectrum(spectrum),
            "vendi_2": vendi_of_spectrum(spectrum, 2),
            "vendi_inf": vendi_of_spectrum(spectrum, math.inf),
            "log_determinant": float(spectrum.log1p().sum()),
        }
        for spectrum in kernel_spectra(subset, sizes)
    ]


def _cosines(subset: torch.Tensor, sizes: list[int]) -> list[Values]:
    """The mean cosine of all pairs: the squared length of the sum of the unit rows is the sum of all their cosines."""
    total, zeros, rounds = torch.zeros(subset.shape[1], dtype=torch.float64), 0, []
    for start, size in pairwise([0, *sizes]):
        for chunk in subset[start:size].split(TILE):
            units = unit_rows(chunk)
            total += units.sum(dim=0)
            zeros += int((units == 0).all(dim=1).sum())
        pairs = size * (size - 1)
        rounds.append({"mean_cosine": (float(total @ total) + zeros**2 - size) / pairs if pairs else None})
    return rounds


def _coverage(
    x: torch.Tensor, rows: torch.Tensor, sizes: list[int], update: Callable[[int], None]
) -> tuple[list[Values], torch.Tensor]:
    """The measures that compare all rows of x with the subset, in one pass over x; and each subset row's density [n].

    Where a subset grows, the nearest row is the nearest one so far or one of the added rows.
    """
    subset, contents = x[rows], _contents(x)
    radius, distances, similarities = (torch.zeros(len(sizes), dtype=torch.float64) for _ in range(3))
    nearest = torch.full((len(subset), NEIGHBORS), torch.inf, dtype=torch.float64)
    for tile, theirs in zip(x.split(TILE), contents.split(TILE), strict=True):
        tile = tile.to(torch.float64)
        distance, bound = (torch.full((len(tile),), torch.inf, dtype=torch.float64) for _ in range(2))
        similarity = torch.full((len(tile),), -1.0, dtype=torch.float64)
        for i, (begin, end) in enumerate(pairwise([0, *sizes])):
            for start in range(begin, end, TILE):
                part = slice(start, min(start + TILE, end))
                chunk = subset[part].to(torch.float64)
                squared, cosine = _compare(tile, chunk)
                value, index = squared.min(dim=1)
                closer = (value < bound).nonzero()[:, 0]
                bound[closer] = value[closer]
                exact = (tile[closer] - chunk[index[closer]]).norm(dim=1)
                distance[closer] = torch.minimum(distance[closer], exact)
                similarity = torch.maximum(similarity, cosine.amax(dim=1))
                copies = theirs[:, None] == contents[rows[part]]
                nearest[part] = _nearest_of(nearest[part], (1 - cosine).masked_fill_(copies, torch.inf))
            radius[i] = torch.maximum(radius[i], distance.max())
            distances[i] += distance.sum()
            similarities[i] += similarity.sum()
        update(len(tile))
    rounds: list[Values] = [
        {"covering_radius": float(farthest), "chamfer": float(far) / len(x), "facility_location": float(like) / len(x)}
        for farthest, far, like in zip(radius, distances, similarities, strict=True)
    ]
    return rounds, _density(nearest)


def _within(
    subset: torch.Tensor, sizes: list[int], density: torch.Tensor, update: Callable[[int], None]
) -> list[Values]:
    """The measures that compare all pairs of the subset's rows, a tile of rows at a time, for all sizes at once."""
    distances, novelty = (torch.zeros(len(sizes), dtype=torch.float64) for _ in range(2))
    weights = torch.arange(1, len(subset) + 1, dtype=torch.float64) ** -ALPHA  # by rank, the nearest first
    expansion = density**BETA
    start = 0
    for tile in subset.split(max(1, PAIRS // len(subset))):
        tile = tile.to(torch.float64)
        compared = [_compare(tile, chunk.to(torch.float64)) for chunk in subset.split(TILE)]
        squared, cosine = (torch.cat(parts, dim=1) for parts in zip(*compared, strict=True))
        angular = 1 - cosine
        own = torch.arange(len(tile))
        squared[own, start + own] = angular[own, start + own] = torch.inf  # a row is no neighbor of itself
        for i, size in enumerate(sizes):
            count = min(size - start, len(tile))
            if count < 1 or size < 2:
                continue
            neighbor = subset[squared[:count, :size].argmin(dim=1)]
            distances[i] += (tile[:count] - neighbor).norm(dim=1).sum()
            ordered, order = angular[:count, :size].sort(dim=1, stable=True)
            expanded = ordered[:, :-1] * expansion[order[:, :-1]]
            novelty[i] += (expanded @ weights[: size - 1]).sum() / weights[: size - 1].sum()
        start += len(tile)
        update(len(tile))
    return [
        {"nearest_distance": float(far) / size, "novelsum": float(novel) / size}
        if size > 1
        else {"nearest_distance": None, "novelsum": None}
        for size, far, novel in zip(sizes, distances, novelty, strict=True)
    ]


def _compare(rows: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances, computed from products, and cosines: [R, D] and [O, D] float64 -> both [R, O] float64."""
    lengths, other_lengths = rows.norm(dim=1, keepdim=True), others.norm(dim=1)
    products = rows @ others.T
    squared = lengths**2 + other_lengths**2 - 2 * products
    scale, other_scale = (torch.where(values > 0, 1 / values, 0) for values in (lengths, other_lengths))
    cosine = products.mul_(scale).mul_(other_scale).clamp_(-1, 1)
    cosine[(lengths == 0) & (other_lengths == 0)] = 1
    return squared, cosine


def _contents(x: torch.Tensor) -> torch.Tensor:
    """An id of each row's values, int64 [N]: copies have the same id, other rows different ones."""
    id_of: dict[bytes, int] = {}
    ids = []
    for tile in x.split(TILE):
        for row in (tile + 0).numpy():  # + 0 turns -0.0 into 0.0, so that equal values have equal bytes
            digest = hashlib.blake2b(row, digest_size=16).digest()
            ids.append(id_of.setdefault(digest, len(id_of)))
    return torch.tensor(ids)


def _nearest_of(nearest: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The K smallest distances of each subset row, [n, K]: of the K so far and the distances of R more rows [R, n]."""
    return torch.cat([nearest, others.T], dim=1).topk(NEIGHBORS, largest=False, sorted=False).values


def _density(nearest: torch.Tensor) -> torch.Tensor:
    """1 / mean of each row's finite distances [n, K] -> [n]; the mean is 0 for a row without any."""
    finite = nearest.isfinite()
    total = torch.where(finite, nearest, 0).sum(dim=1)
    return 1 / (total / finite.sum(dim=1).clamp(min=1) + TINY)
