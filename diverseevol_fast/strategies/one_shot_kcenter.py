"""OneShotKCenterSampling: the picks of all rounds at once, by the model of round 0."""

from .kcenter import KCenterSampling


class OneShotKCenterSampling(KCenterSampling):
    """The picks of K-Center greedy are nested: the first k of a larger number are those of k."""

    name = "OneShotKCenterSampling"
    picks_all_rounds_at_once = True
