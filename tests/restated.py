"""What other implementations of K-Center greedy do, restated plainly in their own precision, to compare picks with."""

import numpy as np
import torch
from sklearn.metrics import pairwise_distances


class Google:
    """google/active-learning: distances by scikit-learn, a running minimum, argmax; a drawn row when there is none."""

    def __init__(self, x, metric="euclidean"):
        self.x, self.metric = x, metric

    def select_batch(self, model, already_selected, n):
        """Sequence of n rows."""
        x = model.transform(self.x) if hasattr(model, "transform") else self.x.reshape(len(self.x), -1)
        nearest = np.full(len(x), np.inf)
        for center in already_selected:
            nearest = np.minimum(nearest, pairwise_distances(x, x[[center]], metric=self.metric)[:, 0])
        picks = []
        for _ in range(n):
            drawn = not picks and not len(already_selected)
            picks.append(int(np.random.choice(np.arange(len(x))) if drawn else nearest.argmax()))
            nearest = np.minimum(nearest, pairwise_distances(x, x[[picks[-1]]], metric=self.metric)[:, 0])
        return picks


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
