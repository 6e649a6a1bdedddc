"""MarginSampling, an uncertainty baseline."""

from .uncertainty import UncertaintySampling


class MarginSampling(UncertaintySampling):
    """The candidates with the lowest mean, over their tokens, of the largest logit minus the second. A baseline."""

    name = "MarginSampling"
    title = "margin"
    column = 1
