"""What a run picked: some rows of each round with the nearest row of the pool, and all candidates in a plane."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..._common.files import read_json
from ..._common.progress import Progress
from ...data.dataset import Data
from ...data.schemas import Alpaca
from ...runs.finished import FinishedRun

EXAMPLES = 4  # picks shown of a round, the first ones
KINDS = ("family", "task", "category", "source", "dataset", "type")  # usual keys for the kind of a row
FEW = 24  # most distinct values that another field may have to be taken for the kind of a row
LONGEST_VALUE = 40  # most characters of such a value
DOMINANT = 0.8  # share of the variance above which the first direction is left out: it would show two stripes
BLOCK = 8192  # rows of embeddings in memory at a time


@dataclass(frozen=True)
class Text:
    """A row as a reader sees it."""

    row: int
    question: str
    answer: str
    kind: str | None


@dataclass(frozen=True)
class Example:
    """A row that joined the pool. Distances are not squared."""

    text: Text
    own_distance: float | None  # to its nearest center when it was picked, by the run's model; None: not measured
    nearest: Text | None  # the nearest row of the pool when it was picked, by the fixed model; None: the pool was empty
    distance: float | None  # to that row


@dataclass(frozen=True)
class Plane:
    """Two principal directions of embeddings."""

    mean: torch.Tensor  # [D] float64
    axes: torch.Tensor  # [D, 2] float64, of length 1
    shares: tuple[float, float]  # of the variance, along the two directions
    left_out: float | None = None  # the share of the first direction, where it is left out

    def points(self, x: torch.Tensor) -> np.ndarray:
        """Coordinates [N, 2] of rows [N, D], float64."""
        blocks = range(0, len(x), BLOCK)
        return torch.cat([(x[begin : begin + BLOCK].double() - self.mean) @ self.axes for begin in blocks]).numpy()


@dataclass(frozen=True)
class Picked:
    """What a run picked, round by round."""

    examples: list[list[Example]]  # by round, the first picks first
    kind_key: str | None  # the field with a row's kind; None: no field is taken for it
    kinds: list[int]  # number of kinds in the pool, by round; empty without a key
    all_kinds: int  # number of kinds among the candidates
    kind_of: list[str]  # every candidate's kind; empty without a key
    plane: Plane
    points: np.ndarray  # [candidates, 2], in the plane
    joined: list[np.ndarray]  # by round, int64 indices into the candidates of the rows that joined


def picks_of(run: FinishedRun, x: torch.Tensor, plane: Plane) -> Picked:
    """The run's picks. x: [len(run.candidates), D] float32, the candidates' embeddings by the fixed model."""
    data, candidates = run.data, run.candidates
    pool = run.pool(run.rounds - 1)
    ends = [0, *(len(run.pool(r)) for r in range(run.rounds))]
    indices = np.searchsorted(candidates, pool)
    key = _kind_key(data, candidates)
    texts = [text_of(data, row, key) for row in pool]
    embedded = x[torch.from_numpy(indices)].double()
    examples = [
        [_example(i, i - begin, run, r, texts, embedded) for i in range(begin, min(begin + EXAMPLES, end))]
        for r, (begin, end) in enumerate(pairwise(ends))
    ]
    kind_of = [data.rows[row][key] for row in candidates] if key else []
    kinds = [len({text.kind for text in texts[:end]}) for end in ends[1:]] if key else []
    joined = [indices[begin:end] for begin, end in pairwise(ends)]
    return Picked(examples, key, kinds, len(set(kind_of)), kind_of, plane, plane.points(x), joined)


def text_of(data: Data, row: int, kind_key: str | None = None) -> Text:
    """A row's question and answer; of a conversation, the first turns of user and assistant."""
    kind = str(data.rows[row][kind_key]) if kind_key else None
    if isinstance(data.schema, Alpaca):
        fields = data.fields(row)
        question = "\n".join(part for part in (fields["instruction"], fields["input"]) if part)
        return Text(row, question, fields["output"], kind)
    first = {turn["role"]: turn["content"] for turn in reversed(data.turns(row))}
    return Text(row, first.get("user", ""), first.get("assistant", ""), kind)


def plane_of(x: torch.Tensor) -> Plane:
    """The plane of two consecutive principal components of the rows of x [N, D].

    They are the first two, or the second and third where the first holds more than DOMINANT of the variance. A
    direction's largest entry is made positive, so that the same embeddings always give the same picture.
    """
    n, width = x.shape
    blocks = range(0, n, BLOCK)
    total = torch.zeros(width, dtype=torch.float64)
    for begin in blocks:
        total += x[begin : begin + BLOCK].double().sum(dim=0)
    mean = total / n
    covariance = torch.zeros(width, width, dtype=torch.float64)
    with Progress("projection", n, "row") as bar:
        for begin in blocks:
            part = x[begin : begin + BLOCK].double() - mean
            covariance.addmm_(part.T, part)
            bar.update(len(part))
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    variance_of_all = float(variances.sum())
    shares = [variance / variance_of_all if variance_of_all else 0.0 for variance in variances.tolist()]
    first = int(width > 2 and shares[0] > DOMINANT and shares[2] > 1e-9)  # more than rounding leaves
    axes = torch.zeros(width, 2, dtype=torch.float64)
    axes[:, : min(width, 2)] = directions[:, first : first + 2]
    axes *= torch.sign(axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)))
    shown = tuple([*shares, 0.0][first : first + 2])
    return Plane(mean, axes, shown, shares[0] if first else None)


def _example(i: int, nth: int, run: FinishedRun, r: int, texts: list[Text], embedded: torch.Tensor) -> Example:
    """Row i of the final pool, the nth pick of round r. embedded: the pool's embeddings, [pool, D] float64."""
    sqdist = read_json(run.state.round_folder(r) / "selected.json")["sqdist"]
    own = sqdist[nth] ** 0.5 if sqdist and sqdist[nth] is not None else None
    if r == 0:  # its rows are drawn at random, all at once
        return Example(texts[i], own, None, None)
    distances = torch.linalg.vector_norm(embedded[:i] - embedded[i], dim=1)
    nearest = int(distances.argmin())
    return Example(texts[i], own, texts[nearest], float(distances[nearest]))


def _kind_key(data: Data, candidates: np.ndarray) -> str | None:
    """The field that has every candidate's kind, a string; there is more than one kind.

    It is the first of KINDS with at most one kind for every two rows; else, of the fields that the model does not read,
    the one with the fewest values, at most FEW and each at most LONGEST_VALUE long.
    """
    rows = [data.rows[row] for row in candidates]
    for key in KINDS:
        if 1 < len(_values(rows, key)) <= len(rows) / 2:
            return key
    others = {}
    for key in rows[0].keys() - set(data.columns.values()):
        values = _values(rows, key)
        if 1 < len(values) <= min(FEW, len(rows) / 2) and max(map(len, values)) <= LONGEST_VALUE:
            others[key] = len(values)
    return min(others, key=lambda key: (others[key], key), default=None)


def _values(rows: list[dict], key: str) -> set[str]:
    """The distinct strings under a key; empty where a row has no string there."""
    values = {value for row in rows if isinstance(value := row.get(key), str)}
    return values if all(isinstance(row.get(key), str) for row in rows) else set()
