"""anomalib's `KCenterGreedy`: the coreset of PatchCore and AnomalyDINO."""

import importlib
import importlib.metadata
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from ._adapter import pick

EPS = 0.9  # of the projection, as in anomalib


@dataclass(frozen=True)
class Start:
    """How a version of anomalib treats the row that it draws first."""

    included: bool  # whether the row is in the coreset, or only a center
    on_cpu: bool  # whether the CPU's generator draws it, or that of the embedding's device


# From the source of each release; other releases may draw or count differently.
OLDEST, OLDER, NEWER = Start(False, True), Start(False, False), Start(True, False)
KNOWN = {
    **dict.fromkeys(("2.0.0", "2.1.0"), OLDEST),
    **dict.fromkeys(("2.2.0", "2.3.0", "2.3.1", "2.3.2", "2.3.3"), OLDER),
    **dict.fromkeys(("2.4.0", "2.4.1", "2.4.2", "2.5.0", "2.5.1", "2.6.0", "2.6.1", "2.6.2", "2.7.0"), NEWER),
}


class KCenterGreedy:
    """A coreset by K-Center greedy from a random row, as in anomalib 2.7.

    It picks the same rows in the same order under the same state of torch's and numpy's global generators, but for
    candidates whose distances float32 cannot tell apart; and it never picks a row twice where rows are equal.
    """

    def __init__(self, embedding: torch.Tensor, sampling_ratio: float):
        """
        Args:
            embedding: [N, D] or [N, ...], float32, bfloat16 or float16. A matrix is projected before distances are
                computed; the coreset's rows are the unprojected ones.
            sampling_ratio: the coreset's share of the rows, rounded down.

        Raises:
            TypeError: an embedding that is not a tensor.
            ValueError: a share that holds no row, or more than all.
        """
        if not isinstance(embedding, torch.Tensor):
            raise TypeError(f"embedding: expected a tensor, got {type(embedding).__name__}")
        is_share = isinstance(sampling_ratio, Real) and 0 < sampling_ratio <= 1
        size = int(len(embedding) * sampling_ratio) if is_share else 0
        if size == 0:
            raise ValueError(
                f"sampling_ratio: expected a share of {len(embedding)} rows that holds 1 to {len(embedding)}, "
                f"got {sampling_ratio!r}"
            )
        self.embedding, self.coreset_size = embedding, size

    def select_coreset_idxs(self) -> list[int]:
        """The indices of the coreset's rows, in pick order.

        Raises:
            ValueError: a row that is not finite.
        """
        return _coreset(_features(self.embedding), self.coreset_size, NEWER)

    def sample_coreset(self) -> torch.Tensor:
        """The coreset's rows of the embedding, in pick order."""
        return self.embedding[self.select_coreset_idxs()]


def projection(n: int, dim: int) -> torch.Tensor:
    """A very sparse random projection (Li, Hastie and Church 2006) for n rows, [components, dim] float32.

    As many components as the lemma of Johnson and Lindenstrauss asks for at EPS (Dasgupta and Gupta 2003), drawn from
    torch's and numpy's global generators in anomalib's order.
    """
    from sklearn.utils.random import sample_without_replacement

    density = 1 / math.sqrt(dim)
    components = int(4 * math.log(n) / (EPS**2 / 2 - EPS**3 / 3))
    matrix = torch.zeros(components, dim)
    for row in matrix:
        count = int(torch.binomial(torch.tensor(float(dim)), torch.tensor(density)))
        columns = torch.from_numpy(sample_without_replacement(dim, count))
        row[columns] = torch.binomial(torch.ones(count), torch.full((count,), 0.5)) * 2 - 1
    return matrix * (math.sqrt(1 / density) / math.sqrt(components)) if components else matrix


def patch() -> None:
    """Replace the selection of the installed anomalib: every use of its KCenterGreedy uses ours from here on.

    Raises:
        ImportError: anomalib is not installed, or its version is not one whose behavior is known.
    """
    try:
        version = importlib.metadata.version("anomalib")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError("anomalib: not installed; nothing to patch") from error
    if version not in KNOWN:
        raise ImportError(
            f"anomalib {version}: not a version whose coreset is known to be the same ({', '.join(KNOWN)}); "
            "it is left as it is. diverseevol_fast.compat.anomalib.KCenterGreedy can be used beside it"
        )
    target = importlib.import_module("anomalib.models.components.sampling.k_center_greedy").KCenterGreedy
    target.select_coreset_idxs = _method_for(KNOWN[version])


def _method_for(start: Start) -> Any:
    def select_coreset_idxs(self: Any, selected_idxs: list[int] | None = None) -> list[int]:
        """The indices of the coreset's rows, in pick order, by diverseevol_fast.

        Args:
            selected_idxs: None; anomalib 2.0 and 2.1 have the parameter, and none of their models passes it.
        """
        if selected_idxs:
            raise ValueError("selected_idxs: expected None, the patched selection starts from a random row alone")
        return _coreset(_features(self.embedding), self.coreset_size, start)

    return select_coreset_idxs


def _features(embedding: torch.Tensor) -> torch.Tensor:
    """[N, components] of a matrix, projected; other embeddings as rows, [N, ...] flattened."""
    return embedding @ projection(*embedding.shape).to(embedding).T if embedding.ndim == 2 else embedding.flatten(1)


def _coreset(features: torch.Tensor, size: int, start: Start) -> list[int]:
    """`size` rows from a random one; where that is only a center and `size` is all rows, it comes last."""
    device = "cpu" if start.on_cpu else features.device
    first = int(torch.randint(high=len(features), size=(1,), device=device))
    if start.included:
        return [first] if size == 1 else [first, *pick(features, size - 1, [first])]
    others = min(size, len(features) - 1)
    return (pick(features, others, [first]) if others else []) + [first] * (size - others)
