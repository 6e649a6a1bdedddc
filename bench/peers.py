"""K-Center loops of other projects, written from their described behavior (docs in each), for bench/ and tests/.

Each takes x [N, D] float32, an array or a tensor, the centers' indices and k, and returns k picks in pick order. Those
that keep tensors run on x's device.
"""

import numpy as np
import torch


def reference_formula(x: np.ndarray | torch.Tensor, centers: list[int], k: int) -> list[int]:
    """DiverseEvol's public implementation: the N x N matrix sqrt(s + s' - 2 G), reduced again for each pick.

    The square is not clamped: near-duplicates give NaN, which is picked first.
    """
    x = torch.as_tensor(x)
    gram = x @ x.T
    squares = gram.diagonal().reshape(-1, 1)
    distance = torch.sqrt(squares + squares.T - 2 * gram)
    labelled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    labelled[centers] = True
    indices = torch.arange(len(x), device=x.device)
    picks = []
    for _ in range(k):
        nearest = distance[~labelled][:, labelled].min(dim=1).values
        pick = int(indices[~labelled][int(nearest.argmax())])
        labelled[pick] = True
        picks.append(pick)
    return picks


class Google:
    """google/active-learning: distances by scikit-learn, a running minimum that outlives a call, argmax.

    Its branch for the first row compares with None what is a list from the beginning: argmax of no distances is 0.
    """

    def __init__(self, x: np.ndarray, metric: str = "euclidean"):
        self.x, self.metric = x, metric
        self.features = x.reshape(len(x), -1)
        self.known: list[int] = []
        self.nearest: np.ndarray | None = None

    def select_batch(self, model, already_selected: list[int], n: int) -> list[int]:
        """n picks in pick order; a model with `transform` gives the features, and starts the minimum anew."""
        if hasattr(model, "transform"):
            self.features, self.nearest = model.transform(self.x), None
            self._update(already_selected)
        else:
            self._update([row for row in already_selected if row not in self.known])
        picks = []
        for _ in range(n):
            pick = int(np.argmax(self.nearest))
            assert pick not in already_selected
            self._update([pick] if pick not in self.known else [])
            picks.append(pick)
        self.known = already_selected
        return picks

    def _update(self, centers: list[int]) -> None:
        from sklearn.metrics import pairwise_distances

        if centers:
            distance = pairwise_distances(self.features, self.features[centers], metric=self.metric).min(axis=1)
            self.nearest = distance if self.nearest is None else np.minimum(self.nearest, distance)


def google_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """One batch of Google, without a model."""
    return Google(x).select_batch(None, centers, k)


def deepal_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """DeepAL: the N x N matrix in numpy, one column appended for each pick, minimum over all columns again."""
    labelled = np.zeros(len(x), dtype=bool)
    labelled[centers] = True
    gram = x @ x.T
    squares = np.diag(gram).reshape(-1, 1)
    distance = np.sqrt(np.maximum(squares + squares.T - 2 * gram, 0))
    indices = np.arange(len(x))
    columns = distance[~labelled][:, labelled]
    picks = []
    for _ in range(k):
        farthest = columns.min(axis=1).argmax()
        pick = int(indices[~labelled][farthest])
        picks.append(pick)
        labelled[pick] = True
        columns = np.delete(columns, farthest, 0)
        columns = np.append(columns, distance[~labelled, pick][:, None], axis=1)
    return picks


def anomalib_loop(x: np.ndarray | torch.Tensor, centers: list[int], k: int) -> list[int]:
    """anomalib's PatchCore coreset: torch, the norm of x - center for each pick, running minimum."""
    x = torch.as_tensor(x)
    nearest = torch.full((len(x), 1), torch.inf)
    picks: list[int] = []
    for center in centers + [-1] * k:
        if center < 0:
            center = int(nearest.argmax())
            picks.append(center)
        distance = torch.linalg.norm(x - x[center : center + 1], ord=2, dim=1, keepdim=True)
        nearest = torch.minimum(nearest, distance)
        nearest[center] = 0
    return picks


def matrix_vector_loop(x: np.ndarray | torch.Tensor, centers: list[int], k: int) -> list[int]:
    """One BLAS matrix-vector product for each center: s + s' - 2 x.c, running minimum."""
    x = torch.as_tensor(x)
    squares = torch.cat([part.float().square().sum(1) for part in x.split(65_536)])
    nearest = torch.full((len(x),), float("inf"), device=x.device)
    picks: list[int] = []
    for center in centers + [-1] * k:
        if center < 0:
            center = int(nearest.argmax())
            picks.append(center)
        torch.minimum(nearest, squares + squares[center] - 2 * (x @ x[center]), out=nearest)
        nearest[center] = -1
    return picks


def sklearn_argmin_min(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """scikit-learn's pairwise_distances_argmin_min against the centers, then against each pick."""
    from sklearn.metrics import pairwise_distances_argmin_min

    nearest = pairwise_distances_argmin_min(x, x[centers])[1]
    picks = []
    for _ in range(k):
        pick = int(nearest.argmax())
        picks.append(pick)
        nearest = np.minimum(nearest, pairwise_distances_argmin_min(x, x[[pick]])[1])
    return picks


def fpsample_loop(x: np.ndarray, centers: list[int], k: int) -> list[int]:
    """fpsample's farthest point sampling; from one center alone."""
    import fpsample

    return fpsample.fps_sampling(x, k + 1, start_idx=centers[0])[1:].tolist()


def ties(x, centers, picks: list[int], unit: bool = False) -> int:
    """How many of a peer's picks are not those of float64 greedy after the same picks; an error unless each is a tie.

    A tie: the squared distances of the two candidates differ by less than float32 rounding can, which is taken as a few
    units in the last place of the squares that enter them. unit: the peer compares rows brought to length 1.
    """
    x = torch.as_tensor(np.asarray(x)).double().reshape(len(x), -1)
    x = torch.nn.functional.normalize(x) if unit else x
    nearest = torch.cdist(x, x[list(centers)], compute_mode="donot_use_mm_for_euclid_dist").square().amin(1)
    rounding = 8 * torch.finfo(torch.float32).eps * float(x.square().sum(1).max())
    chosen, count = set(centers), 0
    for pick in picks:
        assert pick not in chosen
        chosen.add(pick)
        nearest[list(chosen - {pick})] = -1
        best = int(nearest.argmax())
        if best != pick:
            gap = float(nearest[best] - nearest[pick])
            assert gap < rounding, f"{pick} instead of {best}: {gap} farther, of rounding {rounding}"
            print(f"tie: {pick} instead of {best}, {gap:.3g} farther in squared distance")
            count += 1
        nearest = torch.minimum(nearest, (x - x[pick]).square().sum(1))
    return count
