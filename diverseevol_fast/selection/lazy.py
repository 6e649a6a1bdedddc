"""LazyTraversal: K-Center greedy by a new model's embeddings, of which only those that can decide are computed.

From one round of fine-tuning to the next, embeddings hardly move. Those of the last round therefore predict how far a
row is from the pool in this round, and a row whose predicted distance is small cannot be picked.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._common.device_copies import copy_to_device
from ..ops.audit import sqdist_from_below
from ..ops.checks import first_not_finite
from ..ops.min_sqdist import LARGEST_DIM
from .arguments import as_count, as_device, as_indices, as_integers, as_rows, as_seed, shown
from .bounds import spread_first
from .device_rows import choose_backends, row_mean
from .host_rows import rows_on
from .lazy_bounds import LazyGreedy
from .traversal import LARGEST_BLOCK

MULTIPLES = {"residual": 1.5, "drift": 1.1}  # of the largest one seen
LARGEST_MULTIPLE = 1000
MOVING = 64  # rows at least whose mean movement is that of all
MOST_EMBEDDED = 0.8  # when so many of the rows are embedded, the others are at once: it costs less than going on
PATIENCE = 2  # after so many attempts, predictions are known to be poor: a quarter more rows are embedded each time
CONFIDENCE = 0.95
ALL_EMBEDDED = "All rows were embedded: the picks are those of K-Center greedy."

Embed = Callable[[np.ndarray], Any]  # from indices to embeddings


@dataclass(frozen=True)
class Audit:
    """Rows drawn at random among those that were not embedded, and embedded to see whether they would be picked."""

    drawn_from: int  # the rows that were not embedded
    rows: int  # of these, how many were drawn
    passed: bool  # the picks stayed the same


@dataclass(frozen=True)
class AgeGroup:
    """Rows that were last embedded about as long ago, and share an allowance."""

    ages: tuple[int, int]  # from, to, in rounds
    rows: int  # without the centers
    probe: int  # of these, how many were drawn
    largest_seen: float  # the largest residual or drift of a row that was embedded; at least 0
    allowance: float  # what bounds allow beyond the predicted distance, at the end

    @property
    def when(self) -> str:
        """Since when the rows have been predicted, in words."""
        first, last = self.ages
        if last == 1:
            return "embedded in the round before"
        return f"embedded {last} rounds ago" if first == last else f"embedded {first} to {last} rounds ago"


@dataclass(frozen=True)
class LazyResult:
    """The result of LazyTraversal.select."""

    indices: np.ndarray  # [picks] int64, in pick order
    sqdist: np.ndarray  # [picks] float64: each pick's squared distance to its nearest center when picked
    embedded: np.ndarray  # [N] bool: the rows that were embedded, the centers among them
    bound: str  # "residual" or "drift"
    multiple: float
    groups: list[AgeGroup]  # the youngest first
    audits: list[Audit]  # the last one passed, unless all rows are embedded
    backend: str  # of the screen
    seconds: float  # without embedding

    @property
    def share_embedded(self) -> float:
        """The share of all rows that were embedded."""
        return float(self.embedded.mean())

    @property
    def guarantee(self) -> str:
        """What is known of the picks, in words."""
        if self.embedded.all():
            return ALL_EMBEDDED
        condition = {
            "residual": "is, at some pick, farther from its nearest center than predicted by more than",
            "drift": "is farther from its predicted embedding than",
        }[self.bound]
        limits = ", ".join(f"{group.allowance:.4g} ({group.when})" for group in self.groups)
        drawn = ", ".join(str(group.probe) for group in self.groups)
        text = [
            f"The picks are those of K-Center greedy unless a row that was not embedded {condition} {limits}:",
            f"{self.multiple:g} times the largest {self.bound} of {drawn} rows drawn at random, or more where a row",
            "that was embedded exceeded that. Before the first pick, one more such row exceeds the largest of m with a",
            "probability of at most 1 / (m + 1).",
        ]
        if self.audits:
            last = self.audits[-1]
            share = 1 - ((1 - CONFIDENCE) / len(self.audits)) ** (1 / last.rows)  # Bonferroni's, of all audits
            text.append(
                f"Of {last.drawn_from} rows that were not embedded, {last.rows} were drawn and embedded: none of them "
                f"would have been picked, so that with {CONFIDENCE:.0%} confidence fewer than {share:.2%} of these "
                "rows would."
            )
        return " ".join(text)

    def __repr__(self) -> str:
        allowances = ", ".join(f"{group.allowance:.4g}" for group in self.groups)
        return (
            f"LazyResult({len(self.indices)} picks; {self.share_embedded:.1%} embedded, allowances {allowances}, "
            f"{len(self.audits)} audits; {self.seconds:.3g} s)"
        )


class LazyTraversal:
    """K-Center greedy in embeddings by a new model, from those by an older one and a function that embeds rows.

        lazy = LazyTraversal(old_embeddings, lambda rows: embed_by_new_model(texts, rows), centers=pool)
        result = lazy.select(100)
        print(result.share_embedded, result.guarantee)

    1. The centers, and a random probe of the other rows, are embedded. The mean movement of the centers (of MOVING rows
       at least) is added to the old embeddings: the predicted embeddings.
    2. A row's predicted distance is that of its predicted embedding to the new embeddings of the centers. Its residual
       is its true distance less the predicted one; its drift is how far its new embedding is from the predicted one.
    3. No row is taken to be farther than its predicted distance plus the allowance, a multiple of the largest residual
       (or drift) of the probe. Greedy picks a row that is embedded and farther than all bounds, and makes it a center.
       Where a row that is not embedded has the largest bound, it is asked for, and taken to be as predicted from there
       on. What was asked for is embedded at once, widens the allowance where it exceeds it, and greedy begins again,
       until it asks for nothing.
    4. An audit embeds rows drawn at random among the others, and greedy begins again. Where that gives other picks, the
       allowance is widened, and another audit follows.

    The specification is lazy_kcenter in ops/reference.py. The picks are those of kcenter on all new embeddings, in
    order, if no row that was not embedded exceeds the allowance; LazyResult.guarantee says what is known of that. One
    more row drawn at random exceeds the largest residual of m with a probability of at most 1 / (m + 1), as all are
    exchangeable (conformal prediction: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005).

    Where rows move too unevenly, many are embedded; when more than MOST_EMBEDDED of them are, all are.
    """

    def __init__(
        self,
        old: Any,
        embed: Embed,
        centers: Sequence[int] | np.ndarray | torch.Tensor,
        *,
        ages: Any = None,
        bound: str = "residual",
        multiple: float | None = None,
        probe: int = 256,
        audit: int = 256,
        seed: int = 0,
        device: str | torch.device | None = None,
    ):
        """
        Args:
            old: [N, D] embeddings by an earlier model of the same width, or the `values` of the last LazyTraversal;
                any array that kcenter takes. A float32 copy is made.
            embed: a function from indices, int64 [B], to the new model's embeddings [B, D]. No index comes twice.
            centers: the rows already selected, as indices or a mask; at least one.
            ages: [N] integers: how many rounds ago a row of `old` was embedded, at least 1; before that it was
                predicted. Rows of ages 1, 2, 3 to 4, 5 to 8 and so on have a probe and an allowance for each group.
                None: all of age 1.
            bound: "residual"; or "drift", which embeds more rows and assumes less: by the triangle inequality no row
                is farther than predicted by more than its drift, whatever becomes a center.
            multiple: of the largest residual or drift seen; at least 1. None: 1.5, or 1.1 of the drift.
            probe: how many rows to draw, in equal parts of the groups of ages; of each group at least one.
            audit: how many rows an audit draws; 0 for no audit.
            seed: of the draws.
            device: as kcenter.

        Raises:
            TypeError, ValueError: as kcenter; a probe of more rows than there are besides centers.
        """
        old = as_rows(old, "old")
        n, dim = old.shape
        if dim >= LARGEST_DIM:
            raise ValueError(f"old: expected fewer than {LARGEST_DIM} columns, for which bounds hold; use kcenter")
        bad = first_not_finite(old)
        if bad >= 0:
            raise ValueError(f"old: row {bad} holds a value that is not finite")
        if not callable(embed):
            raise TypeError(f"embed: expected a function from indices to embeddings, got {type(embed).__name__}")
        self._embed = embed
        pool = as_indices(centers, n)
        self._centers = np.array([pool[i] for i in spread_first(len(pool))], dtype=np.int64)
        if not len(self._centers):
            raise ValueError("centers: expected at least one row, got none")
        if bound not in MULTIPLES:
            raise ValueError(f"bound: expected {' or '.join(map(repr, MULTIPLES))}, got {shown(bound)}")
        self.bound = bound
        self.multiple = MULTIPLES[bound] if multiple is None else _as_multiple(multiple)
        self.probe = _as_size("probe", probe, 1, n - len(self._centers))
        self.audit = _as_size("audit", audit, 0, None)
        self._draws = np.random.default_rng(as_seed(seed))
        self._device = as_device(device, old.device)
        self._chosen = choose_backends(self._device, "auto", torch.float32)
        self.values = old.to(torch.float32, copy=True)  # [N, D]: new embeddings, and predicted ones
        self.embedded = np.zeros(n, dtype=bool)  # [N]: which rows of `values` are new
        self._group = _groups(ages, n)  # [N]
        self._allowances, self._largest_seen = np.zeros((2, int(self._group.max()) + 1))
        self._most_embedded = int(MOST_EMBEDDED * n)

    def select(self, k: int) -> LazyResult:
        """Pick k rows, once.

        Raises:
            TypeError, ValueError: k is out of range; embeddings of another shape, or not finite (the row is named).
            BoundViolationError: as kcenter.
        """
        if self.embedded.any():
            raise ValueError("select: has picked already; the next round is another LazyTraversal")
        wanted = as_count(k, len(self.values) - len(self._centers), None)
        self._began, self._seconds_embedding = time.perf_counter(), 0.0
        self._begin()
        greedy, audits = self._greedy(wanted), []
        while self.audit and not self.embedded.all():
            before, unread = self._allowances.copy(), np.flatnonzero(~self.embedded)
            drawn = np.sort(self._draws.permutation(unread)[: self.audit])
            self._read(drawn, self.multiple)
            again = self._greedy(wanted)
            passed = again.picks == greedy.picks
            audits.append(Audit(len(unread), len(drawn), passed))
            if passed:
                break
            greedy = again
            if np.array_equal(self._allowances, before):  # a row exceeded it after a pick, not before the first
                self._allowances *= self.multiple
                greedy = self._greedy(wanted)
        return LazyResult(
            indices=np.array(greedy.picks, dtype=np.int64),
            sqdist=np.array(greedy.sqdist, dtype=np.float64),
            embedded=self.embedded.copy(),
            bound=self.bound,
            multiple=self.multiple,
            groups=self._age_groups(),
            audits=audits,
            backend=self._chosen["min_sqdist"],
            seconds=time.perf_counter() - self._began - self._seconds_embedding,
        )

    def _begin(self) -> None:
        """Embed centers and probe, predict the other rows, and find the allowance."""
        others = self._draws.permutation(np.setdiff1d(np.arange(len(self.values)), self._centers))
        probe = self._probe = self._drawn(others)
        others = others[~np.isin(others, probe)]
        moving = np.concatenate([self._centers, others[: max(0, MOVING - len(self._centers))]])
        new = self._embedded(np.concatenate([moving, probe]))
        movement = (new[: len(moving)].to(torch.float64) - self.values[moving]).mean(dim=0)
        self.values += movement.to(torch.float32)
        self.values[moving], self.embedded[moving] = new[: len(moving)], True
        self._put(probe, new[len(moving) :], self.multiple)

    def _drawn(self, others: np.ndarray) -> np.ndarray:
        """The probe: the first of `others`, which are in random order, as many of each age group as there are."""
        of_groups = [others[self._group[others] == group] for group in np.unique(self._group[others])]
        drawn, remaining = [], self.probe
        for left, rows in zip(range(len(of_groups), 0, -1), sorted(of_groups, key=len), strict=True):
            drawn.append(rows[: max(1, remaining // left)])  # without a row nothing would be known of a group
            remaining -= len(drawn[-1])
        return np.concatenate(drawn)

    def _greedy(self, k: int) -> LazyGreedy:
        """Greedy with all its k picks; what it asks for is embedded, until it asks for nothing."""
        for attempt in itertools.count():
            greedy = self._attempt(k)
            asked = greedy.run_lazily(k, self._most_embedded)
            if not len(asked):
                break
            if attempt >= PATIENCE:
                further = greedy.bounds.largest_predicted(int(self.embedded.sum()) // 4)
                asked = torch.cat([asked, further])
            self._read(asked.sort().values.cpu().numpy(), 1.0)  # not drawn at random: they speak for themselves
        return greedy

    def _attempt(self, k: int) -> LazyGreedy:
        """Greedy that has not begun, with the allowance as it is."""
        centers = copy_to_device(torch.from_numpy(self._centers), self._device)
        rows = rows_on(self.values, self._device, self._chosen, None, len(centers) + k, LARGEST_BLOCK)
        allowance = torch.from_numpy(self._allowances[self._group])
        allowance[torch.from_numpy(self.embedded)] = -1.0
        greedy = LazyGreedy(rows, rows.gather(centers), copy_to_device(allowance, self._device))
        greedy.bounds.exclude(centers)
        return greedy

    def _read(self, indices: np.ndarray, multiple: float) -> None:
        """Embed the rows at these indices; what _put says of allowances."""
        self._put(indices, self._embedded(indices), multiple)

    def _embedded(self, indices: np.ndarray) -> torch.Tensor:
        """The new embeddings [B, D] of the rows at these indices, int64, on the device of `values`."""
        began = time.perf_counter()
        new = as_rows(self._embed(indices), "embed").to(self.values.device, torch.float32)
        self._seconds_embedding += time.perf_counter() - began
        if new.shape != (len(indices), self.values.shape[1]):
            wanted = (len(indices), self.values.shape[1])
            raise ValueError(f"embed: expected embeddings of shape {wanted}, as wide as old, got {tuple(new.shape)}")
        bad = first_not_finite(new)
        if bad >= 0:
            raise ValueError(f"embed: the embedding of row {indices[bad]} is not finite")
        return new

    def _put(self, indices: np.ndarray, new: torch.Tensor, multiple: float) -> None:
        """Replace predicted embeddings by new ones [B, D]; a row beyond its allowance widens it.

        multiple: of that row's residual or drift, which the allowance becomes.
        """
        predicted = self.values[indices]
        if self.bound == "drift":
            seen = torch.linalg.vector_norm(new.to(torch.float64) - predicted, dim=1)
        else:
            seen = self._distances(new) - self._distances(predicted)
        self.values[indices], self.embedded[indices] = new, True
        group, seen = self._group[indices], seen.cpu().numpy()
        exceeding = seen > self._allowances[group]
        np.maximum.at(self._largest_seen, group, seen)
        np.maximum.at(self._allowances, group[exceeding], multiple * seen[exceeding])
        np.maximum.accumulate(self._allowances, out=self._allowances)  # older rows have moved as far

    def _age_groups(self) -> list[AgeGroup]:
        others = np.setdiff1d(np.arange(len(self.values)), self._centers)
        groups = []
        for group in np.unique(self._group[others]).tolist():
            groups.append(
                AgeGroup(
                    ages=(2 ** (group - 1) + 1 if group else 1, 2**group),
                    rows=int((self._group[others] == group).sum()),
                    probe=int((self._group[self._probe] == group).sum()),
                    largest_seen=float(self._largest_seen[group]),
                    allowance=float(self._allowances[group]),
                )
            )
        return groups

    def _distances(self, x: torch.Tensor) -> torch.Tensor:
        """[B] float64: the distance, not squared, of each row of x [B, D] to the nearest of the first centers."""
        x, centers = x.to(self._device), self.values[torch.from_numpy(self._centers)].to(self._device)
        return sqdist_from_below(x, centers, row_mean(x)).clamp(min=0.0).sqrt()


def _groups(ages: Any, n: int) -> np.ndarray:
    """The group of each row, [N] int64: 0 for an age of 1, 1 for 2, 2 for 3 and 4, 3 for 5 to 8.

    Raises:
        TypeError, ValueError: not n integers of at least 1.
    """
    if ages is None:
        return np.zeros(n, dtype=np.int64)
    ages = as_integers(ages, "ages")
    if ages.dtype == np.bool_ or ages.shape != (n,):
        raise ValueError(f"ages: expected {n} integers, got {ages.dtype} of shape {ages.shape}")
    if ages.min() < 1:
        raise ValueError(f"ages: expected at least 1, got {ages.min()}")
    return np.ceil(np.log2(ages)).astype(np.int64)


def _as_multiple(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"multiple: expected a number, got {type(value).__name__}")
    if not 1 <= value <= LARGEST_MULTIPLE:
        raise ValueError(f"multiple: expected 1 to {LARGEST_MULTIPLE}, got {shown(value)}")
    return float(value)


def _as_size(name: str, value: Any, least: int, most: int | None) -> int:
    """value, which messages call `name`, as a number of rows."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a number of rows, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {shown(value)}")
    if most is not None and value > most:
        raise ValueError(f"{name}: expected at most {most}, the rows that are not centers, got {shown(value)}")
    return int(value)
