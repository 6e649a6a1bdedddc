"""Whitening: embeddings rotated and scaled to unit variance along the directions of largest variance."""

import torch

CHUNK_ELEMENTS = 1 << 22  # rows are taken in chunks of about this many elements, x is never copied whole


def whiten(x: torch.Tensor, n_components: int) -> torch.Tensor:
    """x [N, D] along its n_components directions of largest variance, each scaled to variance 1; rows of length 1.

    (x - mean) U diag(1 / sqrt(s)), U and s from the singular value decomposition of the covariance (Su et al. 2021,
    arXiv 2103.15316), as DiverseEvol's whiten_n_components does. Returns
    [N, n_components] float32. A row equal to the mean gives zeros.

    Raises:
        ValueError: more components than there are directions in which the rows vary.
    """
    n, width = x.shape
    chunks = x.split(max(1, CHUNK_ELEMENTS // width))
    mean = sum(chunk.to(torch.float64).sum(dim=0) for chunk in chunks) / n  # [D]
    covariance = x.new_zeros((width, width), dtype=torch.float64)
    for chunk in chunks:
        centered = chunk.to(torch.float64) - mean
        covariance.addmm_(centered.T, centered, alpha=1 / n)
    directions, variances, _ = torch.linalg.svd(covariance)
    rank = int((variances > variances[0] * width * torch.finfo(torch.float64).eps).sum())
    if not 1 <= n_components <= rank:
        raise ValueError(f"whiten_n_components: expected 1 to {rank}, the rank of {n} rows, got {n_components}")
    scaled = directions[:, :n_components] / variances[:n_components].sqrt()  # [D, n_components]
    whitened = torch.empty((n, n_components), dtype=torch.float32, device=x.device)
    for chunk, target in zip(chunks, whitened.split(len(chunks[0])), strict=True):
        target.copy_(torch.nn.functional.normalize((chunk.to(torch.float64) - mean) @ scaled, dim=1))
    return whitened
