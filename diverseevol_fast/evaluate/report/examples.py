"""What a run picked: some rows of each round beside the nearest row of the pool, and all rows in a plane."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..._common.files import read_json
from ..._common.progress import Progress
from ...data.dataset import Data
from ...runs.finished import FinishedRun

EXAMPLES = 4  # of a round: its first picks
KINDS = ("family", "task", "category", "source", "dataset", "type")  # keys under which rows say of what kind they are
FEW = 24  # values of another field at most, of LONGEST_VALUE characters, that says of what kind rows are
LONGEST_VALUE = 40
DOMINANT = 0.8  # a direction with more of the variance is left out of the plane: it would show two stripes
BLOCK = 8192  # rows of embeddings in memory


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
    own_distance: float | None  # to its nearest centre when picked, as the run measured it; None: it measured none
    nearest: Text | None  # the nearest row of the pool when it was picked, by the fixed model; None: there was none
    distance: float | None  # to that row


@dataclass(frozen=True)
class Plane:
    """Two principal directions of embeddings."""

    mean: torch.Tensor  # [D] float64
    axes: torch.Tensor  # [D, 2] float64, of length 1
    shares: tuple[float, float]  # of the variance, along the two directions
    left_out: float | None = None  # the share of the strongest direction, where it is none of the two

    def points(self, x: torch.Tensor) -> np.ndarray:
        """Where rows [N, D] lie: [N, 2]."""
        blocks = range(0, len(x), BLOCK)
        return torch.cat([(x[begin : begin + BLOCK].double() - self.mean) @ self.axes for begin in blocks]).numpy()


@dataclass(frozen=True)
class Picked:
    """Rounds of a run, in words and in a plane of the embeddings."""

    examples: list[list[Example]]  # by round, the first picks first
    kind_key: str | None  # under which all rows say their kind
    kinds: list[int]  # different ones in the pool, by round; empty without a key
    all_kinds: int  # among the candidates
    kind_of: list[str]  # every candidate's kind; empty without a key
    plane: Plane
    points: np.ndarray  # [candidates, 2], in the plane
    joined: list[np.ndarray]  # by round, the places among the candidates of the rows that joined


def picks_of(run: FinishedRun, x: torch.Tensor, plane: Plane) -> Picked:
    """What the run picked. x: [len(run.candidates), D] float32, the candidates' embeddings by a fixed model."""
    data, candidates = run.data, run.candidates
    pool = run.pool(run.rounds - 1)
    ends = [0, *(len(run.pool(r)) for r in range(run.rounds))]
    positions = np.searchsorted(candidates, pool)
    key = _kind_key(data, candidates)
    texts = [text_of(data, row, key) for row in pool]
    embedded = x[torch.from_numpy(positions)].double()
    examples = [
        [_example(place, place - begin, run, r, texts, embedded) for place in range(begin, min(begin + EXAMPLES, end))]
        for r, (begin, end) in enumerate(pairwise(ends))
    ]
    kind_of = [data.rows[row][key] for row in candidates] if key else []
    return Picked(
        examples, key,
        [len({text.kind for text in texts[:end]}) for end in ends[1:]] if key else [],
        len(set(kind_of)), kind_of, plane, plane.points(x), [positions[begin:end] for begin, end in pairwise(ends)],
    )  # fmt: skip


def text_of(data: Data, row: int, kind_key: str | None = None) -> Text:
    """What a row asks and answers; of a conversation, the first turns of user and assistant."""
    kind = str(data.rows[row][kind_key]) if kind_key else None
    if data.schema == "alpaca":
        question = "\n".join(part for part in (data.field(row, "instruction"), data.field(row, "input")) if part)
        return Text(row, question, data.field(row, "output"), kind)
    turns = data.conversation(row)
    said = {
        role: next((turn["content"] for turn in turns if turn["role"] == role), "") for role in ("user", "assistant")
    }
    return Text(row, said["user"], said["assistant"], kind)


def plane_of(x: torch.Tensor) -> Plane:
    """The plane of most variance of the rows of x [N, D]: of two neighbouring principal components.

    They are the first two, or the second and third where the first holds more than DOMINANT of the variance. The sign
    of a direction is that of its largest entry, so that the same embeddings always give the same picture.
    """
    n, width = x.shape
    blocks = range(0, n, BLOCK)
    mean = sum(x[begin : begin + BLOCK].double().sum(dim=0) for begin in blocks) / n
    covariance = torch.zeros(width, width, dtype=torch.float64)
    with Progress("projection", n, "row") as bar:
        for begin in blocks:
            part = x[begin : begin + BLOCK].double() - mean
            covariance.addmm_(part.T, part)
            bar.update(len(part))
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    total = float(variances.sum())
    shares = [variance / total if total else 0.0 for variance in variances.tolist()]
    first = int(width > 2 and shares[0] > DOMINANT and shares[2] > 1e-9)  # of rounding there is always some variance
    axes = torch.zeros(width, 2, dtype=torch.float64)
    axes[:, : min(width, 2)] = directions[:, first : first + 2]
    axes *= torch.sign(axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)))
    shown = tuple([*shares, 0.0][first : first + 2])
    return Plane(mean, axes, shown, shares[0] if first else None)


def _example(place: int, nth: int, run: FinishedRun, r: int, texts: list[Text], embedded: torch.Tensor) -> Example:
    """The pick at `place` of the final pool, the nth of round r. embedded: the pool's, [pool, D] float64."""
    sqdist = read_json(run.state.round_folder(r) / "selected.json")["sqdist"]
    own = sqdist[nth] ** 0.5 if sqdist and sqdist[nth] is not None else None
    if r == 0:  # drawn at random, all at once
        return Example(texts[place], own, None, None)
    distances = torch.linalg.vector_norm(embedded[:place] - embedded[place], dim=1)
    nearest = int(distances.argmin())
    return Example(texts[place], own, texts[nearest], float(distances[nearest]))


def _kind_key(data: Data, candidates: np.ndarray) -> str | None:
    """The key under which every candidate says in a text of what kind it is; more than one kind.

    The first of KINDS with at most one kind for every two rows; else the field with the fewest values, at most FEW
    short ones, that is none of the columns which the model reads.
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
    """The different texts under a key; none where a row has no text there."""
    values = [row.get(key) for row in rows]
    return set(values) if all(isinstance(value, str) for value in values) else set()
