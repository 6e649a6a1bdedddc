"""EntropySampling, an uncertainty baseline."""

from .uncertainty import UncertaintySampling


class EntropySampling(UncertaintySampling):
    """The rows with the highest mean entropy of the next token."""

    name = "EntropySampling"
    column = 2
    highest_first = True
