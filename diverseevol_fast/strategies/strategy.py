"""What every strategy has: a name, the ops it calls, checks of its settings, and pick; and its candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .._common.errors import InputError

if TYPE_CHECKING:
    import torch

    from ..embedding.embed_lazily import LazyPicks
    from ..embedding.embed_tokens import Embeddings


class Settings(Protocol):
    """The config's keys that strategies read (runs/config.py)."""

    @property
    def seed(self) -> int: ...
    @property
    def whiten_n_components(self) -> int | bool: ...
    @property
    def max_random_times(self) -> int: ...
    @property
    def vendi_argmax_rank(self) -> int: ...
    @property
    def lazy_rounds(self) -> bool: ...
    @property
    def lazy_probe(self) -> int: ...
    @property
    def init_label_num(self) -> int: ...
    @property
    def n_round(self) -> int: ...
    @property
    def n_query(self) -> int: ...


class Candidates(Protocol):
    """A round's candidates by position (runs/candidates.py); a method computes the embeddings that it returns."""

    r: int  # the round
    pool: list[int]  # the positions of the candidates that are in the pool

    @property
    def config(self) -> Settings: ...
    def __len__(self) -> int: ...
    def embedded(self) -> Embeddings: ...
    def picked_lazily(self, k: int) -> LazyPicks | None: ...
    def embedded_by_base(self) -> torch.Tensor: ...
    def logit_statistics(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Picks:
    """What a strategy picked."""

    positions: list[int]  # among the candidates, in pick order
    metrics: dict[str, Any]  # seconds without the embedding, and what else the strategy measured
    sqdist: list[float] | None = None  # K-Center: each pick's squared distance to its nearest center when picked


class Strategy(ABC):
    """A rule for which candidates join the pool; its name is the config's evol_schedule_name."""

    name = ""
    title = ""  # what sentences call it
    ops: tuple[str, ...] = ()  # the ops that it calls
    needs_logits = False  # whether the model's logits must be its head applied to the last hidden states
    picks_all_rounds_at_once = False  # whether round 1 picks for all rounds
    has_lazy_rounds = False  # whether a round can embed only the rows that can be picked

    def check_settings(self, config: Settings) -> None:
        """Raises InputError for a setting that this strategy does not take."""
        if config.whiten_n_components > 0:
            raise InputError(f"config: whiten_n_components: {self.name} takes no embeddings to whiten")

    def check_size(self, config: Settings, candidates: int, width: int) -> None:  # noqa: B027 (most fit any number)
        """Raises InputError where the settings do not fit this number of candidates in `width` dimensions."""

    @abstractmethod
    def pick(self, candidates: Candidates, k: int) -> Picks:
        """Pick k of the candidates that are not in the pool."""
