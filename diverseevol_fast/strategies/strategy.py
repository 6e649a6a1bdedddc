"""What every strategy has: a name, what it needs, checks of its settings, and pick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._common.errors import InputError

if TYPE_CHECKING:
    from ..runs.candidates import Candidates
    from ..runs.config import Config


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

    def check_settings(self, config: Config) -> None:
        """Raises InputError where the config has a setting that this strategy does not take."""
        if config.whiten_n_components > 0:
            raise InputError(f"config: whiten_n_components: {self.name} takes no embeddings to whiten")

    def check_size(self, config: Config, candidates: int, width: int) -> None:
        """Raises InputError where the settings do not fit so many candidates of so many dimensions."""

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """Pick k of the candidates that are not in the pool."""
        raise NotImplementedError
