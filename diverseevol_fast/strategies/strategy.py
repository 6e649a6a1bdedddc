"""What every strategy has: a name, what it needs, checks of its settings, and pick; and what it may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .._common.errors import InputError

if TYPE_CHECKING:
    import torch

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


class Candidates(Protocol):
    """A round's candidates by position, as runs/candidates.py has them; embeddings are made when they are asked for."""

    r: int  # the round
    pool: list[int]  # the positions of those that are in the pool already

    @property
    def config(self) -> Settings: ...
    def __len__(self) -> int: ...
    def embedded(self) -> Embeddings: ...
    def embedded_by_base(self) -> torch.Tensor: ...
    def logit_statistics(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Picks:
    """What a strategy picked."""

    positions: list[int]  # among the candidates, in pick order
    metrics: dict[str, float | str]  # seconds, without those of the embedding, and what else the strategy knows
    sqdist: list[float] | None = None  # K-Center: each one's squared distance to its nearest center when picked


class Strategy:
    """A rule for which candidates join the pool; its name is the config's evol_schedule_name."""

    name = ""
    ops: tuple[str, ...] = ()  # the kernels that it calls
    needs_logits = False  # of a model whose logits are its head's of the last hidden states
    picks_all_rounds_at_once = False  # in round 1; later rounds take the next of these picks

    def check_settings(self, config: Settings) -> None:
        """Raises InputError where the config has a setting that this strategy does not take."""
        if config.whiten_n_components > 0:
            raise InputError(f"config: whiten_n_components: {self.name} takes no embeddings to whiten")

    def check_size(self, config: Settings, candidates: int, width: int) -> None:
        """Raises InputError where the settings do not fit so many candidates of so many dimensions."""

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """Pick k of the candidates that are not in the pool."""
        raise NotImplementedError
