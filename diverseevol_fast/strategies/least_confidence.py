"""LeastConfidence, an uncertainty baseline."""

from .uncertainty import UncertaintySampling


class LeastConfidence(UncertaintySampling):
    """The candidates with the lowest mean, over their tokens, of the largest logit. A baseline."""

    name = "LeastConfidence"
    title = "least confidence"
    column = 0
