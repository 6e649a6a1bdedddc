"""MarginSampling, an uncertainty baseline."""

from .uncertainty import UncertaintySampling


class MarginSampling(UncertaintySampling):
    """The rows with the lowest mean of the largest logit less the second largest."""

    name = "MarginSampling"
    column = 1
