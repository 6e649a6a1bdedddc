"""OneShotKCenterSampling: round 1 picks for all rounds, by the model of round 0."""

from .kcenter import KCenterSampling


class OneShotKCenterSampling(KCenterSampling):
    """The picks of all rounds at once, by K-Center greedy, in embeddings by the model of round 0.

    An ablation: selection does not iterate. K-Center's first picks do not depend on how many follow, so each round
    takes the next n_query of them.
    """

    name = "OneShotKCenterSampling"
    title = "one-shot K-Center"
    has_lazy_rounds = False
    picks_all_rounds_at_once = True
