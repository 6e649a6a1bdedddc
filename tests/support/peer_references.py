"""What other implementations of K-Center greedy do, restated plainly in their own precision, to compare picks with."""

import numpy as np
import torch
from sklearn.metrics import pairwise_distances


class Google:
    """google/active-learning: distances by scikit-learn, a running minimum that outlives a call, argmax.

    Its branch for the first row compares with None what is a list from the beginning: argmax of no distances is 0.
    """

    def __init__(self, x, metric="euclidean"):
        self.x, self.metric = x, metric
        self.features = x.reshape(len(x), -1)
        self.known, self.nearest = [], None

    def select_batch(self, model, already_selected, n):
        """Sequence of n rows."""
        if hasattr(model, "transform"):
            self.features, self.nearest = model.transform(self.x), None
            self.update(already_selected)
        else:
            self.update([row for row in already_selected if row not in self.known])
        picks = []
        for _ in range(n):
            pick = int(np.argmax(self.nearest))
            assert pick not in already_selected
            self.update([row for row in [pick] if row not in self.known])
            picks.append(pick)
        self.known = already_selected
        return picks

    def update(self, centers):
        """Further centres."""
        for center in centers:
            distance = pairwise_distances(self.features, self.features[[center]], metric=self.metric)[:, 0]
            self.nearest = distance if self.nearest is None else np.minimum(self.nearest, distance)


def matrix_greedy(x: torch.Tensor, labelled: torch.Tensor, n: int) -> list[int]:
    """DiverseEvol and DeepAL: sqrt(s + s' - 2 G) over all pairs in float32, unclamped; the sequence, with its NaN."""
    gram = x @ x.T
    squares = gram.diagonal()
    distances = torch.sqrt(squares[:, None] + squares[None, :] - 2 * gram)
    labelled = labelled.clone()
    picks = []
    for _ in range(n):
        left = (~labelled).nonzero()[:, 0]
        nearest = distances[left][:, labelled].min(dim=1).values
        picks.append(int(left[nearest.argmax()]))
        labelled[picks[-1]] = True
    return picks


def anomalib(features: torch.Tensor, count: int, first: int) -> list[int]:
    """anomalib: the norm of x - c in float32 for each new centre, a running minimum, argmax; without the first row."""
    nearest = torch.full((len(features),), torch.inf)
    picks, center = [], first
    for _ in range(count):
        nearest = torch.minimum(nearest, torch.linalg.norm(features - features[center], dim=1))
        nearest[center] = 0
        center = int(nearest.argmax())
        picks.append(center)
    return picks


def ties(x, centers, picks, unit=False) -> int:
    """How many of another's picks are not those of float64 greedy after the same picks; raises unless each is a tie.

    A tie: the squared distances of the two candidates differ by less than float32 rounding can, which is taken as a few
    units in the last place of the squares that enter them.
    """
    x = torch.as_tensor(np.asarray(x)).double().reshape(len(x), -1)
    x = torch.nn.functional.normalize(x) if unit else x
    nearest = torch.cdist(x, x[list(centers)], compute_mode="donot_use_mm_for_euclid_dist").square().amin(1)
    rounding = 8 * torch.finfo(torch.float32).eps * float(x.square().sum(1).max())
    chosen, found = set(centers), 0
    for pick in picks:
        assert pick not in chosen
        chosen.add(pick)
        nearest[list(chosen - {pick})] = -1
        best = int(nearest.argmax())
        if best != pick:
            gap = float(nearest[best] - nearest[pick])
            assert gap < rounding, f"{pick} instead of {best}: {gap} farther, of rounding {rounding}"
            print(f"tie: {pick} instead of {best}, {gap:.3g} farther in squared distance")
            found += 1
        nearest = torch.minimum(nearest, (x - x[pick]).square().sum(1))
    return found
