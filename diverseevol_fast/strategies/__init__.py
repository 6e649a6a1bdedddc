"""Which rows join the pool: one object in one file for each strategy, and this list of them.

Importing them loads neither torch nor numpy: a config is checked against them before anything else is loaded.
"""

from .entropy import EntropySampling
from .kcenter import KCenterSampling
from .least_confidence import LeastConfidence
from .margin import MarginSampling
from .one_shot_kcenter import OneShotKCenterSampling
from .random_sampling import RandomSampling
from .static_kcenter import StaticKCenterSampling
from .strategy import Picks, Strategy
from .vendi import VendiSampling

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        KCenterSampling(),
        OneShotKCenterSampling(),
        StaticKCenterSampling(),
        RandomSampling(),
        LeastConfidence(),
        MarginSampling(),
        EntropySampling(),
        VendiSampling(),
    )
}

__all__ = ["STRATEGIES", "Picks", "Strategy"]
