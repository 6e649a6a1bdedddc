"""The two kinds of failure that the command line tells apart."""


class InputError(ValueError):
    """The user's input is wrong: a file, an option, a setting. Exit status 2."""


class RunError(RuntimeError):
    """A run failed though its input is right, such as on a loss that is not finite. Exit status 1."""
