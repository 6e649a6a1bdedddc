"""The Vendi Score: the effective number of dissimilar rows among embeddings."""

import math

import torch

CHUNK_ELEMENTS = 1 << 22  # of a chunk of rows, so that x is never copied whole


def vendi_score(x: torch.Tensor, q: float = 1.0) -> float:
    """The Vendi Score of order q of the rows of x [n, D] under the cosine kernel K, from 1 to n.

    exp of the Renyi entropy of order q of the eigenvalues of K / n (Friedman and Dieng 2022, definition 3.1, for q = 1,
    the Shannon entropy; Pasarkar and Dieng 2023 for other orders; `math.inf`: 1 over the largest eigenvalue). A row of
    zeros has no direction: its cosine with another row of zeros is taken as 1, with any other row as 0. Needs memory
    for the smaller of the n x n and the D x D matrix.

    Raises:
        ValueError: not a matrix with rows, values that are not finite, or a negative q.
    """
    return vendi_of_spectrum(kernel_spectra(x, [len(x)])[0], q)


def vendi_of_spectrum(spectrum: torch.Tensor, q: float = 1.0) -> float:
    """The Vendi Score from the eigenvalues of K; zeros among them may be left out.

    Raises:
        ValueError: a negative q.
    """
    if not q >= 0:
        raise ValueError(f"q: expected a number from 0 to infinity, got {q}")
    shares = spectrum[spectrum > 0] / spectrum.sum()
    if q == 1:
        return math.exp(-float((shares * shares.log()).sum()))
    if q == math.inf:
        return 1 / float(shares.max())
    return math.exp(float((q * shares.log()).logsumexp(0)) / (1 - q))


def kernel_spectra(x: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """For each of the ascending sizes the eigenvalues of the cosine kernel of x[:size], x [n, D].

    Each result is [at most min(size, D) + 1] float64, not negative, with the sum `size` up to rounding; missing
    eigenvalues are 0. They are computed from the size x size kernel, which is a corner of the largest such kernel, or
    from the D x D second moment of the unit rows, whichever is smaller. Rows of zeros are treated as in vendi_score.

    Raises:
        ValueError: a size without rows, or values that are not finite.
    """
    if x.ndim != 2 or not sizes or sizes[0] < 1 or sizes[-1] > len(x):
        raise ValueError(f"x: expected a matrix of at least {max([1, *sizes])} rows, got shape {list(x.shape)}")
    _check_finite(x[: sizes[-1]])
    width = x.shape[1]
    units = unit_rows(x[: max((size for size in sizes if size <= width), default=0)])
    kernel = units @ units.T
    moment = kernel.new_zeros((width, width)) if sizes[-1] > width else None
    spectra, added, zeros = [], 0, 0
    for size in sizes:
        for rows in _chunks(x[added:size]):
            units = unit_rows(rows)
            zeros += int((units == 0).all(dim=1).sum())
            if moment is not None:
                moment.addmm_(units.T, units)
        added = size
        spectra.append(_eigenvalues(kernel[:size, :size] if moment is None or size <= width else moment, zeros))
    return spectra


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """x [n, D] in float64 with rows of length 1; rows of zeros stay so."""
    x = x.to(torch.float64)
    lengths = x.norm(dim=1, keepdim=True)  # [n, 1]
    return x / lengths.masked_fill(lengths == 0, 1)


def _chunks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return x.split(max(1, CHUNK_ELEMENTS // max(1, x.shape[1])))


def _check_finite(x: torch.Tensor) -> None:
    start = 0
    for rows in _chunks(x):
        if not rows.isfinite().all():
            raise ValueError(f"x: row {start + int((~rows.isfinite()).any(dim=1).nonzero()[0])} is not finite")
        start += len(rows)


def _eigenvalues(products: torch.Tensor, zeros: int) -> torch.Tensor:
    """The kernel's eigenvalues from U U^T or U^T U of the unit rows U.

    The `zeros` rows of zeros have cosine 1 with each other and 0 with all others: together they add one eigenvalue,
    their number.
    """
    values = torch.linalg.eigvalsh(products)
    noise = values.abs().max() * len(values) * torch.finfo(values.dtype).eps if len(values) else 0
    values = torch.where(values > noise, values, 0)  # rounding makes small values of zeros
    return torch.cat([values, values.new_tensor([zeros])]) if zeros else values
