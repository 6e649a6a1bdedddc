"""LeastConfidence, an uncertainty baseline."""

from .uncertainty import UncertaintySampling


class LeastConfidence(UncertaintySampling):
    """The rows with the lowest mean of the largest logit."""

    name = "LeastConfidence"
    column = 0
