"""Measures of how diverse a subset of embeddings is, by itself and beside all rows; never a matrix of all pairs.

A row of zeros has no direction: its cosine with another row of zeros is taken as 1, with any other row as 0.
Arithmetic is in float64. Distances are Euclidean and not squared; those that are reported are taken by direct
difference, so that a row and its copy are at 0.
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

TILE = 1024  # rows on each side of a matrix of products
PAIRS = 1 << 22  # elements of a matrix of rows beside a whole subset
CELLS = 100  # of the partition, when there are enough rows
ROWS_PER_CELL = 10  # at least, on average
NEIGHBOURS = 10  # NovelSum's K, alpha and beta, as in its paper
ALPHA = 1.0
BETA = 0.5
TINY = 1e-9  # keeps a density finite where all neighbours have the same direction

Values = dict[str, float | None]  # by the measures' names; None: the measure needs two rows


@dataclass(frozen=True)
class Measure:
    """What a number says."""

    title: str
    head: str  # of a column
    higher_is_more_diverse: bool
    what: str  # one line, with {cells} of the partition and the {most} its entropy can be


MEASURES = {
    "vendi": Measure("Vendi Score", "vendi", True,
        "exp of the Shannon entropy of the eigenvalues of K / n, K the cosine kernel: how many unlike rows there are"),
    "vendi_2": Measure("Vendi Score, q = 2", "vendi 2", True,
        "as the Vendi Score, of order 2: common kinds of rows count more"),
    "vendi_inf": Measure("Vendi Score, q = infinity", "vendi inf", True,
        "as the Vendi Score, of infinite order: 1 over the share of the largest eigenvalue"),
    "covering_radius": Measure("Covering radius", "radius", False,
        "largest distance of any row of the data to its nearest row of the subset"),
    "mean_cosine": Measure("Mean pairwise cosine", "mean cos", False,
        "mean cosine of the pairs of different rows of the subset"),
    "nearest_distance": Measure("Nearest-neighbour distance", "nearest", True,
        "mean distance of the subset's rows to the nearest other one"),
    "chamfer": Measure("Chamfer distance, data to subset", "chamfer", False,
        "mean distance, not squared, of all rows of the data to their nearest row of the subset"),
    "facility_location": Measure("Facility location", "facility", True,
        "mean over all rows of the data of the largest cosine with a row of the subset"),
    "log_determinant": Measure("Log-determinant", "log det", True,
        "log det(I + K), K the cosine kernel of the subset: from log(1 + n) to n log 2"),
    "partition_entropy": Measure("Partition entropy", "entropy", True,
        "entropy in nats of the subset's shares of {cells} k-means cells of the data; at most {most:.3f}"),
    "novelsum": Measure("NovelSum", "novelsum", True,
        "mean over the subset's rows of the mean cosine distance to its other rows, weighted by 1 / rank; each "
        f"distance times (that other row's mean distance to its {NEIGHBOURS} nearest rows, copies left out)^-{BETA}"),
}  # fmt: skip


def measure_nested(
    x: torch.Tensor,
    rows: torch.Tensor,
    sizes: list[int],
    cells: np.ndarray,
    update: Callable[[int], None] = lambda count: None,
) -> list[Values]:
    """Every measure of each of the subsets rows[:size].

    Args:
        x: [N, D] finite, float32 or float16; may be memory-mapped.
        rows: int64 [n], different rows of x.
        sizes: ascending, each once, from 1 to n.
        cells: int [N], the cell that each row is in, as partition returns.
        update: told of every row of x and of the subset when it is through: N + n in all.
    """
    subset = x[rows]
    rounds, density = _coverage(x, rows, sizes, update)
    for part in (_spectral(subset, sizes), _cosines(subset, sizes), _within(subset, sizes, density, update)):
        rounds = [values | more for values, more in zip(rounds, part, strict=True)]
    for values, size in zip(rounds, sizes, strict=True):
        values["partition_entropy"] = entropy(np.bincount(cells[rows[:size].numpy()]))
    return [{name: values[name] for name in MEASURES} for values in rounds]


def partition(x: torch.Tensor, seed: int) -> np.ndarray:
    """The k-means cell of each row of x [N, D]: int [N]. As many cells as cell_count says; seed: 0 to 2^32 - 1.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise InputError("diversity: needs scikit-learn; pip install 'scikit-learn>=1.5'") from error
    found: Any = MiniBatchKMeans(cell_count(len(x)), random_state=seed, n_init=1)  # pyright: ignore[reportArgumentType]
    return found.fit(x.float().numpy()).labels_


def cell_count(n: int) -> int:
    """How many cells a partition of n rows has."""
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
    """Shannon entropy in nats of the shares that counts, not all zero, are of their sum."""
    shares = counts[counts > 0] / counts.sum()
    return abs(float(-(shares * np.log(shares)).sum()))  # abs: of one cell it would be -0.0


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
    """The mean over pairs from the sum of the unit rows alone: its squared length is the sum of all their products."""
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
    """What needs all rows of x beside those of the subset, in one pass over x; and each subset row's density [n].

    The nearest row of an enlarged subset is the nearest so far or one of those that joined.
    """
    subset, contents = x[rows], _contents(x)
    radius, distances, similarities = (torch.zeros(len(sizes), dtype=torch.float64) for _ in range(3))
    nearest = torch.full((len(subset), NEIGHBOURS), torch.inf, dtype=torch.float64)
    for tile, theirs in zip(x.split(TILE), contents.split(TILE), strict=True):
        tile = tile.to(torch.float64)
        distance, bound = (torch.full((len(tile),), torch.inf, dtype=torch.float64) for _ in range(2))
        similarity = torch.full((len(tile),), -1.0, dtype=torch.float64)
        for number, (begin, end) in enumerate(pairwise([0, *sizes])):
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
            radius[number] = torch.maximum(radius[number], distance.max())
            distances[number] += distance.sum()
            similarities[number] += similarity.sum()
        update(len(tile))
    rounds: list[Values] = [
        {"covering_radius": float(farthest), "chamfer": float(far) / len(x), "facility_location": float(like) / len(x)}
        for farthest, far, like in zip(radius, distances, similarities, strict=True)
    ]
    return rounds, _density(nearest)


def _within(
    subset: torch.Tensor, sizes: list[int], density: torch.Tensor, update: Callable[[int], None]
) -> list[Values]:
    """What needs all pairs of the subset: its rows in tiles, beside all others, for every size at once."""
    distances, novelty = (torch.zeros(len(sizes), dtype=torch.float64) for _ in range(2))
    weights = torch.arange(1, len(subset) + 1, dtype=torch.float64) ** -ALPHA  # by rank, the nearest first
    expansion = density**BETA
    start = 0
    for tile in subset.split(max(1, PAIRS // len(subset))):
        tile = tile.to(torch.float64)
        compared = [_compare(tile, chunk.to(torch.float64)) for chunk in subset.split(TILE)]
        squared, cosine = (torch.cat(parts, dim=1) for parts in zip(*compared, strict=True))
        angular = 1 - cosine
        here = torch.arange(len(tile))
        squared[here, start + here] = angular[here, start + here] = torch.inf  # itself
        for number, size in enumerate(sizes):
            count = min(size - start, len(tile))
            if count < 1 or size < 2:
                continue
            neighbour = subset[squared[:count, :size].argmin(dim=1)]
            distances[number] += (tile[:count] - neighbour).norm(dim=1).sum()
            ordered, order = angular[:count, :size].sort(dim=1, stable=True)
            expanded = ordered[:, :-1] * expansion[order[:, :-1]]
            novelty[number] += (expanded @ weights[: size - 1]).sum() / weights[: size - 1].sum()
        start += len(tile)
        update(len(tile))
    return [
        {"nearest_distance": float(far) / size, "novelsum": float(novel) / size}
        if size > 1
        else {"nearest_distance": None, "novelsum": None}
        for size, far, novel in zip(sizes, distances, novelty, strict=True)
    ]


def _compare(rows: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances, with the rounding of products, and cosines: [R, D] and [O, D] float64 -> two of [R, O]."""
    lengths, other_lengths = rows.norm(dim=1, keepdim=True), others.norm(dim=1)
    products = rows @ others.T
    squared = lengths**2 + other_lengths**2 - 2 * products
    scale, other_scale = (torch.where(values > 0, 1 / values, 0) for values in (lengths, other_lengths))
    cosine = products.mul_(scale).mul_(other_scale).clamp_(-1, 1)
    cosine[(lengths == 0) & (other_lengths == 0)] = 1
    return squared, cosine


def _contents(x: torch.Tensor) -> torch.Tensor:
    """For each row of x a number that its copies have too, and no other row: int64 [N]."""
    known: dict[bytes, int] = {}
    numbers = []
    for tile in x.split(TILE):
        for row in (tile + 0).numpy():  # -0.0 becomes 0.0: equal numbers are equal bytes
            digest = hashlib.blake2b(row, digest_size=16).digest()
            numbers.append(known.setdefault(digest, len(known)))
    return torch.tensor(numbers)


def _nearest_of(nearest: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The smallest distances of the subset's rows to others: before, [n, K], and new ones, [R, n]."""
    return torch.cat([nearest, others.T], dim=1).topk(NEIGHBOURS, largest=False, sorted=False).values


def _density(nearest: torch.Tensor) -> torch.Tensor:
    """1 over the mean of the finite ones of each row's distances [n, K], 0 for a row without any -> [n]."""
    known = nearest.isfinite()
    total = torch.where(known, nearest, 0).sum(dim=1)
    return 1 / (total / known.sum(dim=1).clamp(min=1) + TINY)
