"""The audit of a screen: bounds held against float64 distances, by products, without waiting for a GPU.

A bound below its row's distance would silently lose picks. A selection audits some of its rows, the self-check of a
kernel audits all rows of its problems.
"""

import torch

from .reference import CHUNK_ELEMENTS

UNIT_ROUNDOFF = 2.0**-53


class BoundViolationError(RuntimeError):
    """A kernel gave a row a bound below its distance: the picks would not be those of float64 greedy."""


def sqdist_from_below(x: torch.Tensor, centers: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """The squared distance of each row to its nearest center, from below: less than it by float64's rounding alone.

    |x - c|^2 = |x - o|^2 + |c - o|^2 - 2 (x - o).(c - o), less the largest rounding error of the sums (Higham, Accuracy
    and Stability of Numerical Algorithms, section 3.1): (D + 8) units of (|x - o| + |c - o|)^2.

    Args:
        x: [N, D] float32, bfloat16 or float16.
        centers: [M, D] float32, M at least 1.
        offset: [D] float32, near the rows' mean.

    Returns:
        [N] float64; NaN for rows that are not finite.
    """
    origin = offset.to(torch.float64)
    points = centers.to(torch.float64).sub_(origin)  # [M, D]
    lengths = torch.linalg.vector_norm(points, dim=1)  # [M]
    own, reach = lengths.square(), lengths.max()
    rows = max(1, CHUNK_ELEMENTS // max(centers.shape))
    parts = []
    for part in x.split(rows):
        values = part.to(torch.float64).sub_(origin)  # [rows, D]
        norms = torch.linalg.vector_norm(values, dim=1)
        nearest = norms.square() + torch.addmm(own, values, points.T, alpha=-2.0).amin(dim=1)
        error = 2.0 * (x.shape[1] + 8) * UNIT_ROUNDOFF * (norms + reach).square()
        parts.append(nearest - error)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=x.device)


def first_violation(bound: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """The first index at which a bound [N] is below a squared distance [N], int64 [1] on their device; -1 for none.

    -infinity, the bound of a row that is a center, is no violation.
    """
    wrong = (bound.to(torch.float64) < below) & (bound != -float("inf"))
    return torch.where(wrong.any(), wrong.to(torch.uint8).argmax(), -1)[None]
