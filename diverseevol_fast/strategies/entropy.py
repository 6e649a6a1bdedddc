"""EntropySampling, an uncertainty baseline."""

from .uncertainty import UncertaintySampling


class EntropySampling(UncertaintySampling):
    """The candidates with the highest mean, over their tokens, of the entropy of the next token. A baseline."""

    name = "EntropySampling"
    title = "entropy"
    column = 2
    highest_first = True
