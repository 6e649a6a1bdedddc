"""KCenterSampling: the method of DiverseEvol (arXiv 2311.08182, section 2)."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from .._common.errors import InputError
from .strategy import Candidates, Picks, Settings, Strategy

if TYPE_CHECKING:
    import torch

    from ..embedding.embed_lazily import LazyPicks
    from ..selection.traversal import KCenterResult


class KCenterSampling(Strategy):
    """The candidates farthest from the pool, by K-Center greedy, in embeddings by the previous round's model.

    The method of the paper.
    """

    name = "KCenterSampling"
    title = "K-Center"
    has_lazy_rounds = True
    ops = ("min_sqdist", "update_argmax", "pick_block")

    def check_settings(self, config: Settings) -> None:
        """Raises InputError for True, which is not a number of components, and for whitening in lazy rounds."""
        if config.whiten_n_components is True:
            raise InputError("config: whiten_n_components: expected the number of components, got True")
        if config.lazy_rounds and config.whiten_n_components > 0:
            raise InputError("config: lazy_rounds: whitening needs all embeddings; expected one of the two, got both")

    def check_size(self, config: Settings, candidates: int, width: int) -> None:
        """Raises InputError for more components than dimensions, or as many as candidates; for too large a probe."""
        most = min(width, candidates - 1)
        if config.whiten_n_components > most:
            raise InputError(
                f"config: whiten_n_components: expected at most {most} with {candidates} candidates in {width} "
                f"dimensions, got {config.whiten_n_components}"
            )

        others = candidates - config.init_label_num - (config.n_round - 1) * config.n_query
        if config.lazy_rounds and config.lazy_probe > others:
            raise InputError(
                f"config: lazy_probe: expected at most {others}, the candidates outside the pool of the last round, "
                f"got {config.lazy_probe}"
            )

    def pick(self, candidates: Candidates, k: int) -> Picks:
        """Embedding has bounded every candidate already; whitened embeddings need a selection of their own."""
        lazily = candidates.picked_lazily(k) if candidates.config.lazy_rounds else None
        if lazily is not None:
            return _lazy_picks_of(lazily)
        embedded = candidates.embedded()
        if candidates.config.whiten_n_components > 0:
            return farthest(candidates, embedded.values, k)
        picks = _picks_of(embedded.select(k))
        if candidates.config.lazy_rounds:
            from ..selection.lazy import ALL_EMBEDDED

            picks.metrics.update(share_embedded=1.0, guarantee=ALL_EMBEDDED)
        return picks


def farthest(candidates: Candidates, x: torch.Tensor, k: int) -> Picks:
    """The k candidates that are farthest from the pool in x [N, D], whitened if the config says so."""
    from ..selection.traversal import kcenter
    from ..selection.whitening import whiten

    began, components = time.perf_counter(), candidates.config.whiten_n_components
    try:
        x = whiten(x, components) if components > 0 else x
    except ValueError as error:
        raise InputError(f"config: {error}") from error
    picks = _picks_of(kcenter(x, k, candidates.pool, progress=True))
    return replace(picks, metrics=picks.metrics | {"seconds": time.perf_counter() - began})


def _picks_of(result: KCenterResult) -> Picks:
    metrics = {"seconds": result.seconds, "passes": result.passes, "backend": result.backend}
    return Picks(result.indices.tolist(), metrics, result.sqdist.tolist())


def _lazy_picks_of(picks: LazyPicks) -> Picks:
    """The picks, and what is known of them."""
    result = picks.result
    if result is None:  # in the first process
        return Picks(picks.indices.tolist(), {})
    metrics = {
        "seconds": result.seconds,
        "backend": result.backend,
        "share_embedded": result.share_embedded,
        "bound": result.bound,
        "multiple": result.multiple,
        "groups": [asdict(group) for group in result.groups],
        "audits": [asdict(audit) for audit in result.audits],
        "guarantee": result.guarantee,
    }
    return Picks(result.indices.tolist(), metrics, result.sqdist.tolist())
