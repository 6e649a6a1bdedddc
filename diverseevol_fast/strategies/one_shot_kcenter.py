"""OneShotKCenterSampling: round 1 picks for all rounds, by the model of round 0."""

from .kcenter import KCenterSampling


class OneShotKCenterSampling(KCenterSampling):
    """K-Center's first k picks do not depend on how many are picked, so each round takes the next n_query of them."""

    name = "OneShotKCenterSampling"
    picks_all_rounds_at_once = True
