"""What a run picked: some rows of each round beside the nearest row of the pool, and a plane of all embeddings."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ...data import Data
from ...files import read_json
from ...progress import Progress
from ...runs import MadeRun

EXAMPLES = 4  # of a round: its first picks
KINDS = ("family", "task", "category", "source", "dataset", "type")  # keys under which rows say of what kind they are
BLOCK = 8192  # rows of embeddings in memory


@dataclass(frozen=True)
class Text:
    """A row as a reader sees it."""

    row: int
    asked: str
    answered: str
    kind: str | None


@dataclass(frozen=True)
class Example:
    """A row that joined the pool. Distances are not squared."""

    text: Text
    own_distance: float | None  # to its nearest centre when picked, as the run measured it; None: it measured none
    nearest: Text | None  # the nearest row of the pool when it was picked, by the fixed model; None: there was none
    distance: float | None  # to that row


@dataclass(frozen=True)
class Picked:
    """Rounds of a run, in words and in the plane of the embeddings' two strongest directions."""

    examples: list[list[Example]]  # by round, the first picks first
    kind_key: str | None  # under which all rows say their kind
    kinds: list[int]  # different ones in the pool, by round; empty without a key
    all_kinds: int  # among the candidates
    plane: np.ndarray  # [candidates, 2]
    pools: list[np.ndarray]  # by round, the rows that joined: [n, 2]
    shares: tuple[float, float]  # of the variance, along the two directions


def look_at(run: MadeRun, x: torch.Tensor) -> Picked:
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
    plane, shares = project(x)
    return Picked(
        examples, key,
        [len({text.kind for text in texts[:end]}) for end in ends[1:]] if key else [],
        len({data.rows[row][key] for row in candidates}) if key else 0,
        plane, [plane[positions[begin:end]] for begin, end in pairwise(ends)], shares,
    )  # fmt: skip


def text_of(data: Data, row: int, kind_key: str | None = None) -> Text:
    """What a row asks and answers; of a conversation, the first turns of user and assistant."""
    kind = str(data.rows[row][kind_key]) if kind_key else None
    if data.schema == "alpaca":
        asked = "\n".join(part for part in (data.field(row, "instruction"), data.field(row, "input")) if part)
        return Text(row, asked, data.field(row, "output"), kind)
    turns = data.conversation(row)
    said = {
        role: next((turn["content"] for turn in turns if turn["role"] == role), "") for role in ("user", "assistant")
    }
    return Text(row, said["user"], said["assistant"], kind)


def project(x: torch.Tensor) -> tuple[np.ndarray, tuple[float, float]]:
    """Principal components: the rows of x [N, D] in the plane of most variance, [N, 2], and the two shares of it.

    The sign of a direction is that of its largest entry, so that the same embeddings always give the same picture.
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
    axes = torch.zeros(width, 2, dtype=torch.float64)
    axes[:, : min(width, 2)] = directions[:, -2:].flip(1)
    axes *= torch.sign(axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)))
    plane = torch.cat([(x[begin : begin + BLOCK].double() - mean) @ axes for begin in blocks])
    total = float(variances.clamp(min=0).sum())
    strongest = [*variances.flip(0)[:2].clamp(min=0).tolist(), 0.0][:2]
    return plane.numpy(), tuple(variance / total if total else 0.0 for variance in strongest)


def _example(place: int, nth: int, run: MadeRun, r: int, texts: list[Text], embedded: torch.Tensor) -> Example:
    """The pick at `place` of the final pool, the nth of round r. embedded: the pool's, [pool, D] float64."""
    sqdist = read_json(run.state.round_folder(r) / "selected.json")["sqdist"]
    own = sqdist[nth] ** 0.5 if sqdist and sqdist[nth] is not None else None
    if r == 0:  # drawn at random, all at once
        return Example(texts[place], own, None, None)
    distances = torch.linalg.vector_norm(embedded[:place] - embedded[place], dim=1)
    nearest = int(distances.argmin())
    return Example(texts[place], own, texts[nearest], float(distances[nearest]))


def _kind_key(data: Data, candidates: np.ndarray) -> str | None:
    """The first of KINDS that every candidate has as a text, with more than one value, and not one for each row."""
    for key in KINDS:
        values = {value if isinstance(value := data.rows[row].get(key), str) else None for row in candidates}
        if 1 < len(values) <= len(candidates) / 2 and None not in values:
            return key
    return None
