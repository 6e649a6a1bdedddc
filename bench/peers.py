"""K-Center loops of other projects, written from their described behaviour (docs in each function); numpy or torch.

Each takes x [N, D] float32, the centres' row numbers and k, and returns k picks in pick order.
"""

import numpy as np
import torch


def reference_formula(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """DiverseEvol's public implementation: the N x N matrix sqrt(s + s' - 2 G), reduced again for each pick."""
    rows = torch.from_numpy(x)
    gram = rows @ rows.T
    squares = gram.diagonal().reshape(-1, 1)
    distance = torch.sqrt(squares + squares.T - 2 * gram)
    labelled = torch.zeros(len(x), dtype=torch.bool)
    labelled[centers] = True
    numbers = torch.arange(len(x))
    picks = []
    for _ in range(k):
        nearest = distance[~labelled][:, labelled].min(dim=1).values
        pick = int(numbers[~labelled][int(nearest.argmax())])
        labelled[pick] = True
        picks.append(pick)
    return picks


def google_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """google/active-learning: sklearn pairwise_distances to the newest centre, running minimum."""
    from sklearn.metrics import pairwise_distances

    nearest = pairwise_distances(x, x[centers]).min(axis=1)
    picks = []
    for _ in range(k):
        pick = int(nearest.argmax())
        picks.append(pick)
        nearest = np.minimum(nearest, pairwise_distances(x, x[[pick]])[:, 0])
    return picks


def deepal_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """DeepAL: the N x N matrix in numpy, one column appended for each pick, minimum over all columns again."""
    labelled = np.zeros(len(x), dtype=bool)
    labelled[centers] = True
    gram = x @ x.T
    squares = np.diag(gram).reshape(-1, 1)
    distance = np.sqrt(np.maximum(squares + squares.T - 2 * gram, 0))
    numbers = np.arange(len(x))
    columns = distance[~labelled][:, labelled]
    picks = []
    for _ in range(k):
        place = columns.min(axis=1).argmax()
        pick = int(numbers[~labelled][place])
        picks.append(pick)
        labelled[pick] = True
        columns = np.delete(columns, place, 0)
        columns = np.append(columns, distance[~labelled, pick][:, None], axis=1)
    return picks


def anomalib_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """anomalib's PatchCore coreset: torch, the norm of x - centre for each pick, running minimum."""
    rows = torch.from_numpy(x)
    nearest = None
    picks: list[int] = []
    for center in centers + [-1] * k:
        if center < 0:
            center = int(nearest.argmax())
            picks.append(center)
        distance = torch.linalg.norm(rows - rows[center : center + 1], ord=2, dim=1, keepdim=True)
        nearest = distance if nearest is None else torch.minimum(nearest, distance)
        nearest[center] = 0
    return picks


def matrix_vector_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """One BLAS matrix-vector product for each centre: s + s' - 2 x.c in float32."""
    squares = np.einsum("nd,nd->n", x, x)
    nearest = np.full(len(x), np.inf, dtype=np.float32)
    picks: list[int] = []
    for center in centers + [-1] * k:
        if center < 0:
            center = int(nearest.argmax())
            picks.append(center)
        np.minimum(nearest, squares + squares[center] - 2 * (x @ x[center]), out=nearest)
        nearest[center] = -1
    return picks


def sklearn_argmin_min(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """scikit-learn's pairwise_distances_argmin_min against the centres, then against each pick."""
    from sklearn.metrics import pairwise_distances_argmin_min

    nearest = pairwise_distances_argmin_min(x, x[centers])[1]
    picks = []
    for _ in range(k):
        pick = int(nearest.argmax())
        picks.append(pick)
        nearest = np.minimum(nearest, pairwise_distances_argmin_min(x, x[[pick]])[1])
    return picks


def fpsample_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """fpsample's farthest point sampling; from one centre alone."""
    import fpsample

    return fpsample.fps_sampling(x, k + 1, start_idx=centers[0])[1:].tolist()
